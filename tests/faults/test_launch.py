"""Faults 1, 2, 4 to 10 and 14: a start that goes wrong is classed in seconds, and nothing is left of it."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.inventory.nvml import Inventory, NvmlGpu
from hwprobe.profile import GpuState, Holder
from models.config import ServerConfig
from tests.faults.conftest import WORKLOAD, Launcher
from tests.left import marked
from tuner.engines.faults import Fault, FaultKind
from tuner.seam import FailureKind, LaunchFailed
from tuner.server import process as server_process
from tuner.server import readiness
from tuner.server.failure import Policy, policy_of
from tuner.server.gate import Gate
from tuner.server.ports import DERIVED, STRIDE, Ports, candidates

LOGS = Path(__file__).parents[1] / "data" / "logs"
GRAPHS = "Scheduler hit an exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 448.00 MiB"


def fails(launch: Callable[[], Any]) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as failed:
        launch()
    assert marked() == [], "a process of ours is left"
    return failed.value


def test_fault_01_out_of_memory_for_the_kv_pool(engine: Launcher, config: ServerConfig) -> None:
    text = (LOGS / "cpu_0.5.23_kv_pool_too_small.log").read_text()
    fault = Fault(kind=FaultKind.EXIT, phase="kv pool", text=text, code=-9)
    failure = fails(lambda: engine(fault).launch(config, 0))
    assert failure.kind is FailureKind.OOM_KV
    assert policy_of(failure.kind) is Policy.CONFIGURATION
    assert "Raise --mem-fraction-static above 0.003" in failure.evidence
    assert failure.seconds < readiness.PHASES[0].stall_s / 2, "death is noticed, not waited for"


def test_fault_02_out_of_memory_in_graph_capture_is_another_class(engine: Launcher, config: ServerConfig) -> None:
    fault = Fault(kind=FaultKind.EXIT, phase="graphs", text=GRAPHS, code=-9)
    assert fails(lambda: engine(fault).launch(config, 0)).kind is FailureKind.OOM_GRAPHS


def test_fault_04_a_killed_worker_is_a_host_oom_only_if_the_kernel_says_so(
    engine: Launcher, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Fault(kind=FaultKind.EXIT, phase="weights", code=-9)
    unproven = fails(lambda: engine(killed).launch(config, 0))
    assert unproven.kind is FailureKind.UNKNOWN
    assert policy_of(unproven.kind) is Policy.RETRY
    counts = iter([3, 4])
    monkeypatch.setattr(server_process, "oom_kills", lambda: next(counts))
    proven = fails(lambda: engine(killed).launch(config, 1))
    assert proven.kind is FailureKind.HOST_OOM
    assert "the kernel killed 1 process" in proven.evidence


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.FREEZE])
@pytest.mark.parametrize(
    ("phase", "expected"), [("distributed", FailureKind.NCCL), ("weights", FailureKind.LAUNCH_TIMEOUT)]
)
def test_fault_05_a_start_without_progress_ends_by_its_phase(
    engine: Launcher, config: ServerConfig, kind: FaultKind, phase: str, expected: FailureKind
) -> None:
    failure = fails(lambda: engine(Fault(kind=kind, phase=phase)).launch(config, 0))
    assert failure.kind is expected
    assert failure.seconds < readiness.PHASES[0].stall_s / 2


def test_fault_06_a_port_in_use_is_passed_over(engine: Launcher, config: ServerConfig) -> None:
    with socket.socket() as taken, socket.socket() as derived:
        first, second, third = candidates()[40:43]
        taken.bind(("", first))
        taken.listen()
        derived.bind(("", second + DERIVED.start))
        derived.listen()
        server = engine(ports=Ports(range(first, third + 1, STRIDE), turn=0)).launch(config, 0)
    assert server.port == third
    server.stop()


class TakenOnce(Ports):
    """Two ports that were free when asked for and are taken when the server wants them, then a free one."""

    def __init__(self, taken: int) -> None:
        super().__init__()
        self.given: list[int] = []
        self._taken = taken

    def next(self) -> int:
        self.given.append(self._taken if len(self.given) < 2 else super().next())
        return self.given[-1]


def test_fault_07_a_port_lost_in_a_race_costs_another_try_not_the_trial(engine: Launcher, config: ServerConfig) -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        ports = TakenOnce(rival.getsockname()[1])
        server = engine(ports=ports).launch(config, 0)
        assert len(ports.given) == 3
        server.stop()
    always = engine(Fault(kind=FaultKind.PORT_TAKEN, phase="import"))
    assert fails(lambda: always.launch(config, 1)).kind is FailureKind.PORT


def gpu(used_mib: float, *holders: Holder) -> NvmlGpu:
    state = GpuState(memory_used_mib=used_mib, memory_reserved_mib=600.0, holders=holders)
    return NvmlGpu(index=0, name="H200", uuid="GPU-1", memory_mib=143771.0, sm_count=132, compute_capability="9.0",
                   state=state)  # fmt: skip


def test_fault_08_a_strangers_process_on_the_gpu_is_named_and_left_alone(
    engine: Launcher, config: ServerConfig
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        busy = gpu(41_560.0, Holder(pid=stranger.pid, name="python", used_mib=40_960.0))
        gate = Gate(read=lambda: Inventory(gpus=(busy,), software={}), wait_s=0.5)
        failure = fails(lambda: engine(gate=gate).launch(config, 0))
        assert failure.kind is FailureKind.GPU_BUSY
        assert policy_of(failure.kind) is Policy.STOP
        assert f"process {stranger.pid} 'python' of " in failure.evidence
        assert "40.0 GiB" in failure.evidence
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_fault_09_memory_that_comes_back_late_is_waited_for() -> None:
    used = iter([90_000.0, 90_000.0, 40_000.0, 700.0, 700.0])
    gate = Gate(read=lambda: Inventory(gpus=(gpu(next(used)),), software={}), wait_s=8.0)
    assert gate.pass_through() >= 1.0


def test_fault_10_health_without_a_token_is_not_ready(
    engine: Launcher, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "FIRST_TOKEN_S", 1.0)
    failure = fails(lambda: engine(Fault(kind=FaultKind.MUTE)).launch(config, 0))
    assert failure.kind is FailureKind.STALLED
    assert "no token within 1 s" in failure.evidence


class Parrot(http.server.BaseHTTPRequestHandler):
    """Answers every prompt with the same tokens, however right or wrong."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"text": "!!!!!!", "output_ids": [0, 0, 0, 0]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def parrot() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Parrot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_fault_14_noise_instead_of_the_known_answer_is_wrong_output(parrot: int, tmp_path: Path) -> None:
    process = server_process.ServerProcess([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {})
    try:
        with pytest.raises(LaunchFailed) as failed:
            readiness._check_answer(process, parrot, readiness.Smoke("The capital of France is", "Paris"))
        assert failed.value.kind is FailureKind.WRONG_OUTPUT
        assert "lacks 'Paris': '!!!!!!'" in failed.value.evidence
        readiness._check_answer(process, parrot, readiness.Smoke("Say it", "!!!"))
    finally:
        process.stop()


def test_a_sound_server_is_measured_and_leaves_nothing(engine: Launcher, config: ServerConfig, tmp_path: Path) -> None:
    server = engine().launch(config, 0)
    assert server.info().kv_tokens > 100_000
    assert server.figures.weights_gib.measured == pytest.approx(server.figures.weights_gib.predicted, abs=0.01)
    point = server.measure(WORKLOAD)
    assert point.achieved_in_flight == pytest.approx(2.0, abs=0.1)
    port = server.port
    server.stop()
    server.stop()
    assert marked() == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert (tmp_path / "trials" / "0" / "server_info.json").is_file()


def test_a_refused_configuration_is_not_the_machines_fault(engine: Launcher, config: ServerConfig) -> None:
    broken = replace(config, schedule_conservativeness=-1.0)
    failure = fails(lambda: engine().launch(broken, 0))
    assert failure.kind in (FailureKind.UNSUPPORTED, FailureKind.BAD_FLAG)


def test_the_death_of_a_scheduler_under_load_is_told_with_its_concurrency(
    engine: Launcher, config: ServerConfig
) -> None:
    server = engine(Fault(kind=FaultKind.KILL_SCHEDULER, requests=3)).launch(config, 0)
    try:
        with pytest.raises(LaunchFailed) as failed:
            server.measure(WORKLOAD)
    finally:
        server.stop()
    assert failed.value.kind is FailureKind.KILLED
    assert failed.value.evidence.startswith("at concurrency 2: ")


def test_fault_35_a_gpu_that_falls_off_the_bus_ends_the_point(
    engine: Launcher, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: tuple[str, ...] = ()
    gate = Gate(read=lambda: Inventory(lost=lost, software={}))
    monkeypatch.setattr("tuner.engines.live.GPU_CHECK_S", 0.1)
    server = engine(gate=gate).launch(config, 0)
    try:
        lost = ("GPU 3: GPU is lost",)
        with pytest.raises(LaunchFailed) as failed:
            server.measure(WORKLOAD)
        assert failed.value.kind is FailureKind.GPU_LOST
        assert policy_of(failed.value.kind) is Policy.STOP
        assert "GPU 3" in failed.value.evidence
    finally:
        server.stop()


def test_fault_33_a_full_shm_is_for_the_operator(
    engine: Launcher, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10 << 20

    monkeypatch.setattr("tuner.server.gate.psutil.disk_usage", lambda _: Usage())
    failure = fails(lambda: engine(gate=Gate(read=lambda: Inventory(absent="none", software={}))).launch(config, 0))
    assert failure.kind is FailureKind.SHM_FULL
    assert "10 MiB left" in failure.evidence


@pytest.mark.parametrize("kind", [FaultKind.IGNORE_SIGTERM, FaultKind.ESCAPE])
def test_fault_32_the_stubborn_and_the_escaped_are_ended_too(
    engine: Launcher, config: ServerConfig, kind: FaultKind
) -> None:
    server = engine(Fault(kind=kind, phase="import")).launch(config, 0)
    assert len(marked()) >= 3
    server.stop()
    assert marked() == []


def test_fault_31_an_output_held_open_by_a_grandchild_holds_nobody_up(engine: Launcher, config: ServerConfig) -> None:
    held = Fault(kind=FaultKind.HOLD_STDOUT, phase="import")
    dead = Fault(kind=FaultKind.EXIT, phase="graphs", text=GRAPHS, code=1)
    began = time.monotonic()
    assert fails(lambda: engine(held, dead).launch(config, 0)).kind is FailureKind.OOM_GRAPHS
    assert time.monotonic() - began < 60.0


def test_fault_21_a_killed_shim_takes_everything_with_it(engine: Launcher, config: ServerConfig) -> None:
    server = engine(Fault(kind=FaultKind.ESCAPE, phase="import")).launch(config, 0)
    shim = server.process._shim.pid
    os.kill(shim, signal.SIGKILL)
    with pytest.raises(LaunchFailed) as failed:
        server.measure(WORKLOAD)
    server.stop()
    assert failed.value.kind is FailureKind.SUPERVISOR
    assert policy_of(failed.value.kind) is Policy.RETRY
    assert marked() == []


@pytest.mark.slow
def test_fault_30_a_flood_of_a_gigabyte_neither_fills_the_disk_nor_slows_the_start(
    engine: Launcher, config: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    server = engine(Fault(kind=FaultKind.FLOOD, phase="kv pool", count=1024)).launch(config, 0)
    took = time.monotonic() - began
    server.stop()
    written = sum(path.stat().st_size for path in (tmp_path / "trials" / "0").glob("server.log*"))
    assert written <= server_process.LOG_CAP_BYTES
    assert "Load weight begin" in server.process.log_text(), "the beginning is lost"
    assert "fired up" in server.process.log_text(), "the end is lost"
    assert took < readiness.PHASES[0].stall_s


def test_fault_09_a_web_server_without_its_port_is_not_waited_for(engine: Launcher, config: ServerConfig) -> None:
    """SGLang 0.5.23 with two ranks prints this and stays alive, so that waiting would take the phase's whole limit."""
    text = "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 46775): address already in use"
    failure = fails(lambda: engine(Fault(kind=FaultKind.HANG, phase="warm-up", text=text)).launch(config, 0))
    assert failure.kind is FailureKind.PORT
    assert "46775" in failure.evidence
    assert failure.seconds < readiness.PHASES[-1].stall_s / 4
