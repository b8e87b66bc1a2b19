"""The real SGLang on a CPU, launched, measured, broken and tuned by the code that does it on GPUs."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hwprobe.nvml import Inventory
from models.architecture import load_architecture
from models.config import ServerConfig
from models.estimate import Context
from models.workload import Workload
from planner.resolver import resolve
from tuner.engines.live import LiveEngine, LiveServer
from tuner.engines.runners import LocalRunner
from tuner.engines.seam import FailureKind, LaunchFailed, Verdict
from tuner.load.cross_check import run_theirs
from tuner.load.formats import in_window
from tuner.load.point import Settings, measure_for_tuner, measure_point
from tuner.server.gate import Gate
from tuner.server.ports import Ports
from tuner.server.strays import marked

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, Installed, install  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VOCABULARY = 512
PAIRS = 4
Launch = Callable[..., LiveServer]


@pytest.fixture(scope="module")
def sglang() -> Installed:
    return install()


@pytest.fixture
def launch(sglang: Installed, context: Callable[..., Context], tmp_path: Path) -> Launch:
    arch = load_architecture(sglang.model)
    where = replace(context("h200x1", "0.5.23"), arch=arch)

    def start(*flags: str, ports: Ports | None = None) -> LiveServer:
        config = resolve(ServerConfig(tp_size=1), arch, where.machine, where.version).config
        engine = LiveEngine(
            runner=LocalRunner(python=str(sglang.python)),
            context=where,
            model_path=str(sglang.model),
            trials=tmp_path / "trials",
            measure=measure_for_tuner(0, Settings(least_s=1.0, waves=2.0, vocabulary=VOCABULARY)),
            extra_flags=(*FLAGS, *flags),
            gate=Gate(read=lambda: Inventory(absent="none", software={})),
            ports=ports or Ports(),
        )
        return engine.launch(config, 0)

    return start


def test_it_is_measured_to_the_token_and_agrees_with_sglangs_own_benchmark(
    launch: Launch, sglang: Installed, tmp_path: Path
) -> None:
    server = launch()
    try:
        assert server.info().kv_tokens == 16384
        assert server.figures.timings_s["load_weight"] > 0
        stored = json.loads((tmp_path / "trials" / "0" / "server_info.json").read_text())
        assert stored["figures"]["kv_tokens_per_rank"]["measured"] == 16384
        settings = Settings(vocabulary=VOCABULARY, waves=15.0, least_s=6.0)
        workload = Workload.checked(40, 16, 4)
        point = measure_point(server.url, workload, settings=settings, seed=PAIRS)  # a server's first seconds are slow
        ratios = []
        for seed in range(PAIRS):  # first the one, then the other: what drifts cancels
            before = measure_point(server.url, workload, settings=settings, seed=seed) if seed % 2 else None
            theirs = run_theirs(str(sglang.python), server.url, point, 40, 16, str(sglang.model), seed)
            assert theirs.total_output_tokens == 16 * theirs.completed
            point = before or measure_point(server.url, workload, settings=settings, seed=seed)
            assert all(seen.tokens == 16 and seen.prompt_tokens == 40 for seen in in_window(point))
            assert point.window.errors == 0
            ratios.append(math.log(point.window.output_tok_s / theirs.output_tok_s))
        # A small machine has moods: what counts is a difference beyond what the pairs themselves scatter.
        error = statistics.stdev(ratios) / math.sqrt(PAIRS)
        assert abs(statistics.mean(ratios)) <= 0.05 + 2.0 * error, ratios
        assert error < 0.15, ratios
        assert point.verdict in (Verdict.OK, Verdict.UNSTEADY), point.why
        scheduler = [pid for pid in server.process.pids() if b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(scheduler[0], signal.SIGKILL)
        with pytest.raises(LaunchFailed) as failed:
            server.measure(Workload.checked(40, 16, 4))
        assert failed.value.kind is FailureKind.KILLED
    finally:
        server.stop()
    assert marked() == []


def test_a_memory_fraction_too_small_is_the_kv_pools_fault_not_the_hosts(launch: Launch, tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed) as failed:
        launch("--mem-fraction-static", "0.001")
    assert failed.value.kind is FailureKind.OOM_KV
    assert json.loads((tmp_path / "trials" / "0" / "exit.json").read_text())["returncode"] == -signal.SIGKILL
    assert marked() == []


def test_a_flag_it_does_not_know_is_for_the_operator(launch: Launch, tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed) as failed:
        launch("--no-such-flag", "3")
    assert failed.value.kind is FailureKind.BAD_FLAG
    assert json.loads((tmp_path / "trials" / "0" / "exit.json").read_text())["returncode"] == 2


class Given(Ports):
    """A port somebody listens on, then free ones."""

    def __init__(self, taken: int) -> None:
        super().__init__()
        self._taken = [taken]
        self.asked = 0

    def next(self) -> int:
        self.asked += 1
        return self._taken.pop() if self._taken else super().next()


def test_two_ranks_start_on_another_port_when_the_first_is_taken(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        ports = Given(rival.getsockname()[1])
        server = launch("--tp-size", "2", ports=ports)
    try:
        assert ports.asked == 2
        names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.process.pids()]
        assert sum(b"scheduler" in name for name in names) == 2
        assert server.ready.server_info["tp_size"] == 2
    finally:
        server.stop()
    assert marked() == []


def tune(sglang: Installed, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tuner.cli.main", "tune", "--hardware", "h200x1", "--model", str(sglang.model),
        "--model-path", str(sglang.model), "--isl", "32", "--osl", "16", "--concurrency", "8", "--engine", "local",
        "--python", str(sglang.python), "--no-mtp", "--runs", str(folder), "--run", "a", "--point-time", "3s", *more,
    ]  # fmt: skip


def test_a_killed_tuner_takes_its_sglang_with_it(sglang: Installed, tmp_path: Path) -> None:
    command = [*tune(sglang, tmp_path, "--trials", "1"), "--", *FLAGS]
    tuner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    log = tmp_path / "a" / "trials" / "0" / "server.log"
    until = time.monotonic() + 300
    while not (log.exists() and "Load weight begin" in log.read_text()):
        assert tuner.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    assert len(marked()) >= 3
    tuner.kill()
    tuner.wait()
    time.sleep(3.0)
    assert marked() == []


SPACE = """
[space]
layout = "TP1"
mtp_steps = 0
mem_fraction_static = "default"
chunked_prefill_size = ["default", 16, 64, 1024]
cuda_graph = "default"
max_running = "default"
"""


def test_it_is_tuned_over_configurations_that_differ_and_the_better_one_is_exported(
    sglang: Installed, tmp_path: Path
) -> None:
    """Prompts of 256 tokens in chunks of 16 take sixteen steps and more instead of one: no noise hides that."""
    (tmp_path / "space.toml").write_text(SPACE)
    more = ("--trials", "4", "--sampler", "grid", "--confirm", "0", "--space", str(tmp_path / "space.toml"))
    command = tune(sglang, tmp_path, *more)
    command[command.index("--isl") + 1] = "256"
    ran = subprocess.run([*command, "--json", "--", *FLAGS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["launches"] == 4, (document["stopped"], document["trials"])
    lines = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    measured = {
        line["params"]["chunked_prefill_size"]: line["points"] for line in lines if line["outcome"] == "measured"
    }
    assert set(measured) == {"default", 16, 64, 1024}
    assert all(len(points) == 3 and points[-1]["concurrency"] == 8 for points in measured.values())
    rates = {chunk: points[-1]["output_tok_s"] for chunk, points in measured.items()}
    assert min(rates, key=lambda chunk: rates[chunk]) == 16, rates
    best = document["best"]["config"]["chunked_prefill_size"]
    assert best not in (16, 64)
    script = (tmp_path / "a" / "export" / "launch.sh").read_text()
    assert f"--chunked-prefill-size {best}" in script or best is None
    assert marked() == []
