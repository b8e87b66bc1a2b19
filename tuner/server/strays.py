"""Processes of a server whose shim is gone: found by a mark in their environment, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "SGTUNE_SERVER"
GIVE_UP_S = 10.0
PAUSE_S = 0.02  # a killed process takes a moment to lose its environment


def marked(value: str | None = None) -> list[int]:
    """Return the processes of this user that carry our mark (with this value, or any)."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _carries(pid, value)]


def mark_of(run: str, launch: str) -> str:
    """Return the mark of a launch, which names its run where it has one."""
    return f"{run}:{launch}" if run else launch


def end_run(run: str) -> None:
    """End what the launches of a run left: their tuner and shim may have been killed together."""
    for value in {value for pid in marked() if (value := _mark(pid)).startswith(f"{run}:")}:
        end_marked(value)


def end_marked(value: str) -> None:
    """SIGKILL every process that carries this mark, and those it started meanwhile.

    One that even SIGKILL does not end (it waits in the kernel) is left after some seconds; the gate will name it.
    """
    until = time.monotonic() + GIVE_UP_S
    while (pids := marked(value)) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                # the pidfd pins the process, so that a number used again meets the second look at the mark
                handle = os.pidfd_open(pid)
                try:
                    if _carries(pid, value):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        time.sleep(PAUSE_S)


def _carries(pid: int, value: str | None) -> bool:
    mark = _mark(pid)
    return mark == value if value else bool(mark)


def _mark(pid: int) -> str:
    """Return the mark of a process, empty for one that has none, is gone, or is somebody else's."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    own = (word for word in words if word.startswith(f"{MARK}=".encode()))
    return next(own, b"").partition(b"=")[2].decode(errors="replace")
