"""What a test must not leave behind: processes and ports of ours. Tests that run beside it count only their own."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hwprobe.holds import Held, Hold
from tuner.server import strays
from tuner.server.ports import is_free

# Names who runs these tests, of all that run on the machine: tests/conftest.py sets it, and processes inherit it.
WORKER = "SGTUNE_TESTS_OF"


def marked(value: str | None = None) -> list[int]:
    """Return the processes with our mark that a test of this worker started."""
    return [pid for pid in strays.marked(value) if of_this_worker(pid)]


def nothing_left(within_s: float = 15.0) -> bool:
    """Wait until no process of ours is left; say whether that came in time."""
    until = time.monotonic() + within_s
    while marked():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def still_listening(run: Path) -> set[int]:
    """Return the ports of a run's servers, as their logs name them, that are not free."""
    logs = [log.read_text(errors="replace") for log in run.glob("trials/*/server.log")]
    return {port for log in logs for port in map(int, re.findall(r"'port': (\d+)", log)) if not is_free(port)}


def of_this_worker(pid: int) -> bool:
    """Say whether a process descends from this worker's tests; others run beside it."""
    return _worker_of(pid) == os.environ.get(WORKER)


def _worker_of(pid: int) -> str | None:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((word.partition(b"=")[2].decode() for word in words if word.startswith(f"{WORKER}=".encode())), None)


def evidence_faults(folder: Path, lines_before: Sequence[bytes], lines_now: Sequence[bytes]) -> Iterator[str]:
    """Yield what a run that ended, however it ended, did to its lock and to its records (lines of trials.jsonl)."""
    if folder.exists():
        try:
            Hold(folder / ".lock").release()
        except Held:
            yield "lock left"
    if lines_now[: len(lines_before)] != lines_before:
        yield "record lost or changed"
    if [json.loads(line)["number"] for line in lines_now] != list(range(len(lines_now))):
        yield "numbers with gaps"
