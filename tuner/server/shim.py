"""The lifeline of a server: `python -m tuner.server.shim --lifeline FD --log FILE --record FILE -- COMMAND...`.

Stands between the tuner and the server it starts. When the tuner goes, however it goes, the pipe at FD closes and the
whole server tree dies; nothing else does. It adopts what the server leaves behind (PR_SET_CHILD_SUBREAPER), so a
process that changed its session is found too. It reads the server's output into a file that stays below a cap: a
pipe that a grandchild keeps open cannot hold it up, and a flood cannot fill the disk. Standard library only.

SIGTERM: the server gets SIGTERM and `--drain` seconds, then everything left is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHUNK_BYTES = 1 << 20
LAST_WORDS_S = 0.2
AFTER_S = 30.0


class CappedLog:
    """A log of bounded size: the first half of the cap is kept for ever, then two files take turns for the tail."""

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self._path, self._head, self._turn = path, cap_bytes // 2, cap_bytes // 4
        self._file = private(path)
        self._room = self._head

    def write(self, data: bytes) -> None:
        while data:
            if self._room == 0:
                self._turn_over()
            try:
                written = self._file.write(data[: self._room])
            except OSError:  # a full disk costs log lines, never the server
                return
            data, self._room = data[written:], self._room - written

    def _turn_over(self) -> None:
        self._file.close()
        tail = tail_of(self._path)
        if tail.exists():
            tail.replace(older_of(self._path))
        self._file, self._room = private(tail), self._turn


def private(path: Path) -> FileIO:
    """Open a new file that its owner alone may read: a log may show what was passed on a command line."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)


def tail_of(log: Path) -> Path:
    """Return the file that continues a full log."""
    return log.with_name(log.name + ".tail")


def older_of(log: Path) -> Path:
    """Return the file that holds what came before the tail's start."""
    return log.with_name(log.name + ".tail.1")


class Shim:
    """One server, from start to the death of its last descendant."""

    def __init__(self, command: list[str], lifeline: int, log: CappedLog, drain_s: float) -> None:
        self._lifeline, self._log, self._drain_s = lifeline, log, drain_s
        self._stop_by: float | None = None
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

        def die_with_shim() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        # single-threaded here, so preexec_fn is safe, and the death signal is bound to this very thread
        self.server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=die_with_shim,
        )  # fmt: skip
        assert self.server.stdout is not None
        self._output = self.server.stdout.fileno()
        os.set_blocking(self._output, False)

    def run(self) -> int:
        """Serve until the server has ended or must end; return its exit code (negative: the signal)."""
        exited = os.pidfd_open(self.server.pid)
        watched = [exited, self._lifeline, self._output]
        while True:
            wait_s = None if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())
            with contextlib.suppress(InterruptedError):
                readable, _, _ = select.select(watched, [], [], 0.2 if wait_s is None else min(0.2, wait_s))
                if self._output in readable and not self._drain_output():
                    watched.remove(self._output)
                if exited in readable:
                    break
                if self._lifeline in readable and not os.read(self._lifeline, 1):
                    break  # the tuner is gone: this server is of no use
            if self._stop_by is not None and time.monotonic() >= self._stop_by:
                break
        return self._end()

    def _asked_to_stop(self, number: int, frame: object) -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._drain_s
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server.pid, signal.SIGTERM)

    def _drain_output(self) -> bool:
        """Copy what is there; return False at the end of the output."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._output, CHUNK_BYTES)
            self._log.write(data)
            return bool(data)
        return True

    def _end(self) -> int:
        """Kill every descendant, reap it, and keep the server's last words."""
        code = self.server.poll()
        while True:
            living = descendants(os.getpid())
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if code is None:
                code = self.server.wait()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not living:
                break
            time.sleep(0.02)
        until = time.monotonic() + LAST_WORDS_S
        while select.select([self._output], [], [], max(0.0, until - time.monotonic()))[0]:
            if not self._drain_output():
                break
        return code


def descendants(root: int) -> list[int]:
    """Return the living descendants of a process, from /proc; zombies are not living."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name in parentheses may hold anything: what follows the last ')' is state and parent
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents.setdefault(int(parent), []).append(int(entry.name))
    living, waiting = [], [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        living += children
        waiting += children
    return living


def run_after(command: Sequence[str]) -> None:
    """Run the command that cleans up, if there is one; that it fails is for whoever looks next."""
    if command:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=AFTER_S, check=False)  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tuner.server.shim")
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--cap-bytes", type=int, required=True)
    parser.add_argument("--drain-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    parser.add_argument("--after", type=json.loads, default=[])
    args = parser.parse_args(arguments)
    shim = Shim(args.command, args.lifeline, CappedLog(args.log, args.cap_bytes), args.drain_s)
    code = shim.run()
    run_after(args.after)
    part = args.record.with_name(args.record.name + ".part")
    part.write_text(json.dumps({"returncode": code}))
    part.replace(args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
