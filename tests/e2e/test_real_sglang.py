"""The real SGLang on a CPU, started, waited for, asked and stopped by the code that starts it on GPUs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tuner.engines.seam import FailureKind, LaunchFailed
from tuner.server.process import ServerProcess
from tuner.server.readiness import died, wait_until_ready

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, Installed, install  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def sglang() -> Installed:
    return install()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(sglang: Installed, folder: Path, port: int, *more: str) -> ServerProcess:
    command = [str(sglang.python), "-m", "sglang.launch_server", "--model-path", str(sglang.model), *FLAGS,
               "--port", str(port), "--served-model-name", "sgtune-e2e", *more]  # fmt: skip
    return ServerProcess(command, folder, {})


def test_it_serves_and_the_death_of_a_scheduler_is_seen(sglang: Installed, tmp_path: Path) -> None:
    port = free_port()
    server = start(sglang, tmp_path, port)
    try:
        ready = wait_until_ready(server, port, "sgtune-e2e")
        assert ready.server_info["max_total_num_tokens"] == 16384
        assert ready.boot_s > 1.0
        scheduler = [pid for pid in server.pids() if b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(scheduler) == 1
        os.kill(scheduler[0], signal.SIGKILL)
        until = time.monotonic() + 60
        while server.alive:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert died(server).kind is FailureKind.KILLED
    finally:
        server.stop()
    assert server.pids() == []


def test_a_memory_fraction_too_small_is_the_kv_pools_fault_not_the_hosts(sglang: Installed, tmp_path: Path) -> None:
    port = free_port()
    server = start(sglang, tmp_path, port, "--mem-fraction-static", "0.001")
    try:
        with pytest.raises(LaunchFailed) as failed:
            wait_until_ready(server, port, "sgtune-e2e")
    finally:
        server.stop()
    assert failed.value.kind is FailureKind.OOM_KV
    assert server.returncode == -signal.SIGKILL
