"""What is started under the lifeline never outlives the tuner, and its log never fills the disk."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tuner.server import process as server_process
from tuner.server.process import ServerProcess

# A server like the worst of them: ignores SIGTERM, has a child in a session of its own and an orphaned grandchild.
TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen([*sleep, MARK], start_new_session=True)
if os.fork() == 0:
    subprocess.Popen([*sleep, MARK])
    os._exit(0)
print("up", flush=True)
time.sleep(600)
"""
TUNER = """
import sys, time
from pathlib import Path
from tuner.server.process import ServerProcess
server = ServerProcess([sys.executable, "-c", Path(sys.argv[1]).read_text(), sys.argv[3]], Path(sys.argv[2]), {})
print("started", flush=True)
time.sleep(600)
"""


def marked(mark: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]


def gone(mark: str, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not marked(mark):
            return True
        time.sleep(0.05)
    return False


def wait_for(server: ServerProcess, text: str) -> None:
    until = time.monotonic() + 20
    while text not in server.log_text():
        assert time.monotonic() < until, server.log_text()
        time.sleep(0.05)


def tree(mark: str) -> str:
    return TREE.replace("MARK", repr(mark))


def test_a_stubborn_tree_is_stopped_whole(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-stubborn"
    server = ServerProcess([sys.executable, "-c", tree(mark), mark], tmp_path, {}, drain_s=0.5)
    wait_for(server, "up")
    assert len(marked(mark)) >= 3
    server.stop()
    assert marked(mark) == []
    assert server.returncode == -signal.SIGKILL


def test_the_exit_code_and_the_last_words_are_kept_though_a_grandchild_holds_the_output_open(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-words"
    code = (
        f"import subprocess, sys; subprocess.Popen(['sleep', '600'], env={{'M': {mark!r}}}); print('bye'); sys.exit(7)"
    )
    server = ServerProcess([sys.executable, "-c", code], tmp_path, {})
    until = time.monotonic() + 10
    while server.alive:
        assert time.monotonic() < until
        time.sleep(0.02)
    server.stop()
    assert (server.returncode, server.log_text()) == (7, "bye\n")


def test_the_death_of_the_supervisor_takes_the_server_along(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-shim"
    server = ServerProcess(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)", mark], tmp_path, {}
    )
    wait_for(server, "up")
    server._shim.kill()
    assert gone(mark, 3.0)
    assert (server.alive, server.returncode) == (False, None)
    server.stop()


def test_a_flood_of_output_stays_below_the_cap_and_keeps_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "LOG_CAP_BYTES", 1 << 20)
    code = "print('first'); [print('x' * 999) for _ in range(50_000)]; print('last')"
    server = ServerProcess([sys.executable, "-c", code], tmp_path, {})
    while server.alive:
        time.sleep(0.02)
    server.stop()
    assert sum(file.stat().st_size for file in tmp_path.glob("server.log*")) <= 1 << 20
    text = server.log_text()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
