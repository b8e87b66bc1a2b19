"""Processes of a server whose shim is gone: found by a mark in their environment, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

MARK = "SGTUNE_SERVER"


def marked(value: str | None = None) -> list[int]:
    """Return the processes of this user that carry our mark (with this value, or any)."""
    wanted = f"{MARK}={value or ''}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone, or somebody else's
                words = (entry / "environ").read_bytes().split(b"\0")
                if any(word == wanted if value else word.startswith(wanted) for word in words):
                    found.append(int(entry.name))
    return found


def end_marked(value: str) -> int:
    """SIGKILL every process that carries this mark; return how many there were."""
    ended = 0
    while pids := marked(value):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                # the pidfd pins the process, so that a number used again meets the second look at the mark
                handle = os.pidfd_open(pid)
                try:
                    if pid in marked(value):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        ended += 1
                finally:
                    os.close(handle)
        if ended > 10_000:
            break
    return ended
