"""The emulated server's processes: a scheduler and a detokenizer that die with it, and whose death it dies of."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import NoReturn

from tuner.emulator.log import say
from tuner.server.shim import PR_SET_PDEATHSIG

PR_SET_NAME = 15


def start_child(name: str) -> int:
    """Fork an idle process of this name that is killed when this one dies; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    idle()


def start_escapee() -> None:
    """Leave a process in a session of its own, which no signal to the group reaches."""
    if not os.fork():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        idle()


def start_holder() -> None:
    """Leave a grandchild that keeps the output open."""
    if not os.fork():
        if os.fork():
            os._exit(0)
        idle()
    os.wait()


def idle() -> NoReturn:
    """Do nothing for ever."""
    while True:
        time.sleep(3600)


def die_of_scheduler(text: str) -> NoReturn:
    """End as SGLang does after a scheduler's exception: its traceback, then SIGKILL to the whole tree."""
    say(f"Scheduler hit an exception: Traceback (most recent call last):\n  ...\n{text}\n")
    say("Received sigquit from a child process. It usually means the child failed.")
    say(f"kill_process_tree called: parent_pid={os.getpid()}, include_parent=True, pid={os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)
    idle()


def die_of_lost_child(pid: int, code: int) -> NoReturn:
    """End as SGLang does when a subprocess was killed under it."""
    say(f"Subprocess scheduler_0 (pid={pid}) crashed with exit code {code}. Triggering SIGQUIT for cleanup...")
    say("SIGQUIT received. signum=None, frame=None. It usually means one child failed.")
    os.kill(os.getpid(), signal.SIGKILL)
    idle()
