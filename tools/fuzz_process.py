"""One case of the fuzzer, run as a process of its own, and how it ended."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LONGEST_CPU_S, LONGEST_S = 20.0, 60.0
MOST_MIB = 700
CODES = (0, 1, 2, 3, 130)
COMPLAINTS = ("Traceback (most recent", "failed unexpectedly", "Exception ignored")


@dataclass(frozen=True)
class Case:
    """One command line, run in a folder of its own."""

    number: int
    words: list[str]


@dataclass(frozen=True)
class Ended:
    """How a case ended: its exit code (None: killed after LONGEST_S), seconds by the clock and of work, peak
    memory, and what it printed."""

    code: int | None
    seconds: float
    cpu_s: float
    mib: float
    said: str

    @property
    def problem(self) -> str:
        """What did not end well, empty where all did."""
        if self.code is None:
            return f"not done within {LONGEST_S:.0f} s"
        if self.cpu_s > LONGEST_CPU_S:
            return f"{self.cpu_s:.0f} s of work"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.mib > MOST_MIB:
            return f"{self.mib:.0f} MiB"
        return next((f"said '{word}'" for word in COMPLAINTS if word in self.said), "")


def run_case(case: Case, folder: Path) -> Ended:
    """Run a case in a forked process and wait for its end."""
    output = folder / ".output"
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(case, folder, output)
    status, usage = _wait(pid, began)
    seconds = time.monotonic() - began
    printed = output.read_bytes()[-200_000:].decode(errors="replace") if output.exists() else ""
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Ended(code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def _wait(pid: int, began: float) -> tuple[int | None, resource.struct_rusage]:
    while time.monotonic() - began < LONGEST_S:
        ended_pid, status, usage = os.wait4(pid, os.WNOHANG)
        if ended_pid:
            return status, usage
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return None, os.wait4(pid, 0)[2]


def _child(case: Case, folder: Path, output: Path) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0), os.fdopen(1, "w", errors="backslashreplace"), os.fdopen(2, "w", errors="backslashreplace")
        )  # fmt: skip
        most = 6 << 30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        code = _command(case.words)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _command(words: list[str]) -> int:
    import traceback

    from tuner.cli.main import main as sgtune

    sys.argv = ["sgtune", *words]
    try:
        if words[0] == "_read_run":
            _read_run(Path(words[1]), words[2])
        else:
            sgtune()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001  whatever a command lets through is what the fuzzer looks for
        traceback.print_exc()
        return 99
    return 0


def _read_run(root: Path, name: str) -> None:
    """Read a run as the dashboard's pages do."""
    from dashboard.readers.runs import read_run, run_names
    from hwprobe.errors import SgtuneError

    try:
        for run_name in run_names(root):
            run = read_run(root, run_name)
            _ = run.winner, run.best, run.baseline, run.standings, run.effects, run.slos
    except SgtuneError as error:
        print(error)
