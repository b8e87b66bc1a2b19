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
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.inventory.nvml import Inventory
from models.architecture import load_architecture
from models.config import ServerConfig
from models.serving.estimate import Context
from models.workload import Workload
from planner.sglang.resolver import resolve
from tests.left import marked, nothing_left
from tests.patience import in_one_of_three
from tests.tuner.test_verify import falsified
from tuner.bench.cross_check import TheirLoad, run_theirs
from tuner.bench.formats import in_window
from tuner.bench.point import Settings, measure_for_tuner, measure_point
from tuner.engines.live import LiveEngine, LiveServer
from tuner.engines.runners import LocalRunner
from tuner.seam import FailureKind, LaunchFailed, Verdict
from tuner.server.gate import Gate
from tuner.server.ports import Ports

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


@pytest.mark.alone
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
            load = TheirLoad(point=point, isl=40, osl=16, model=str(sglang.model), seed=seed)
            theirs = run_theirs(str(sglang.python), server.url, load)
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


@pytest.mark.deep
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


@pytest.mark.deep
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
    assert nothing_left()


SPACE = """
[space]
layout = "TP1"
mtp_steps = 0
mem_fraction_static = "default"
chunked_prefill_size = ["default", 16, 64]
cuda_graph = "default"
max_running = "default"
"""


@dataclass(frozen=True)
class Tuned:
    """A finished run on the real server, and the answer of the command."""

    runs: Path
    document: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.runs / "a" / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(sglang: Installed, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Three configurations and the best once more, three rungs each.

    Prompts of 256 tokens in chunks of 16 take sixteen steps and more instead of one: no noise hides that.
    """
    folder = tmp_path_factory.mktemp("runs")
    (folder / "space.toml").write_text(SPACE)
    more = ("--trials", "3", "--sampler", "grid", "--confirm", "1", "--space", str(folder / "space.toml"), "--json")
    command = tune(sglang, folder, *more)
    command[command.index("--isl") + 1] = "256"
    ran = subprocess.run([*command, "--", *FLAGS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return Tuned(folder, json.loads(ran.stdout))


def test_it_is_tuned_over_configurations_that_differ_and_the_better_one_is_exported(tuned: Tuned) -> None:
    assert tuned.document["launches"] == 3, (tuned.document["stopped"], tuned.document["trials"])
    first = [line for line in tuned.lines if line["points"] and line["repeats"] is None]
    assert any(line["points"] and line["repeats"] is not None for line in tuned.lines), "the best is launched again"
    assert all(len(line["points"]) == 3 and line["points"][-1]["concurrency"] == 8 for line in first)
    rates = {line["params"]["chunked_prefill_size"]: line["points"][-1]["output_tok_s"] for line in first}
    assert set(rates) == {"default", 16, 64}
    assert min(rates, key=lambda chunk: rates[chunk]) == 16, rates
    best = tuned.document["best"]["config"]["chunked_prefill_size"]
    assert best != 16
    script = (tuned.runs / "a" / "export" / "launch.sh").read_text()
    assert f"--chunked-prefill-size {best}" in script or best is None
    assert marked() == []


def sgtune_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuner.cli.main", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def bundle(tuned: Tuned, sglang: Installed) -> Path:
    """The winner's launch files, for this interpreter and model."""
    folder = tuned.runs / "bundle"
    places = ("--python", str(sglang.python), "--model-path", str(sglang.model), "--host", "127.0.0.1")
    done = sgtune_process("export", "--runs", str(tuned.runs), "--run", "a", *places, "--bundle", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_exported_script_serves_as_it_stands(bundle: Path) -> None:
    port = Ports().next()
    server = subprocess.Popen(
        ["bash", str(bundle / "launch.sh"), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300
        while (answer := generate(port)) is None:
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)
        assert len(answer["output_ids"]) == 3
    finally:
        server.terminate()
        assert server.wait(60) == 0


def generate(port: int) -> dict[str, Any] | None:
    """Return the answer to a prompt, None while the server is not ready."""
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return dict(json.load(response))
    except OSError:
        return None


def verify(sglang: Installed, path: Path) -> subprocess.CompletedProcess[str]:
    """Verify with the engine's own flags in the file, the interpreter's model beside it."""
    model = ("--model", str(sglang.model), "--python", str(sglang.python), "--engine", "local")
    return sgtune_process("verify", str(path), *model, "--point-time", "3s", "--yes", "--json")


def test_a_true_bundle_is_verified_and_a_falsified_figure_is_not(
    bundle: Path, sglang: Installed, tmp_path: Path
) -> None:
    """The recorded intervals are those of separate launches; a machine may still be in another mood once.

    A point that other tests made unsteady agrees with nothing, and proves nothing: of the others all must agree.
    """

    def attempt() -> None:
        true = verify(sglang, bundle)
        points = json.loads(true.stdout)["points"]
        sound = [point for point in points if point["measured"]["verdict"] == "ok"]
        assert sound, (true.stdout, true.stderr)
        assert all(point["agrees"] for point in sound), true.stdout
        assert true.returncode == (0 if len(sound) == len(points) else 1)

    in_one_of_three(attempt)
    file = tmp_path / "launch.sh"
    file.write_text(falsified((bundle / "launch.sh").read_text(), 20.0, interval=True))
    false = verify(sglang, file)
    assert false.returncode == 1
    assert not json.loads(false.stdout)["points"][-1]["agrees"]
    assert marked() == []
