"""`sgtune tune --traffic`: tuned under a stretch of a trace, resumed, exported and verified under the same one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ServerConfig
from models.serving.estimate import Context
from models.traffic.traced_workload import TracedLoad, mark_of
from models.traffic.window import representative_window
from models.workload import Slo
from planner.launch_files.record import record_of
from planner.sglang.resolver import resolve
from planner.traffic_plans.traced import predict_load
from tests.documents import document_of
from tests.patience import in_one_of_three
from tuner.engines.build import world_toml
from tuner.engines.simulated import SimulatedEngine
from tuner.engines.world import World
from tuner.evidence.run_folder import read_manifest
from tuner.evidence.trial_lines import read_trials
from tuner.trace_files.read import read_trace

Sgtune = Callable[..., Any]
SLOS = ("--slo", "ttft:p99<500ms", "--slo", "tpot:mean<30ms")
TUNE = ("tune", "--hardware", "h200x8", "--engine", "simulated", *SLOS, "--window", "30s", "--confirm", "1")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes of long prompts behind a system prompt of 5,632 tokens, four a second."""
    path = tmp_path_factory.mktemp("traffic") / "crowd.jsonl"
    rng = np.random.default_rng(0)
    rows = [
        {"timestamp": 250 * number, "input_length": 6144, "output_length": int(rng.integers(50, 300)),
         "hash_ids": [*range(11), 100 + number]}
        for number in range(480)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, crowd: Path) -> Path:
    from tests.conftest import run_sgtune

    runs = tmp_path_factory.mktemp("runs")
    done = run_sgtune(*TUNE, "--traffic", str(crowd), "--trials", "5", "--runs", str(runs), "--run", "a", "--json")
    assert done.code == 0, done.err
    (runs / "a" / "told.json").write_text(done.out)
    (runs / "a" / "told.txt").write_text(done.err)
    return runs / "a"


def told(run: Path) -> Any:
    return document_of("tune", (run / "told.json").read_text())


def test_the_run_says_which_window_it_was_tuned_under_and_why(run: Path) -> None:
    traffic = told(run)["traffic"]
    assert (traffic["requests"], traffic["length_s"], traffic["requests_in_all"]) == (120, 30.0, 480)
    assert all(sentence in (run / "told.txt").read_text().replace("\n", " ") for sentence in traffic["why"])
    assert traffic["figures"]["shared"] == pytest.approx(5632 / 6144, abs=0.01)


def test_the_goodput_of_every_trial_is_of_the_trace_s_own_requests(run: Path) -> None:
    """The noise of the default world is 1.5 %; under its limits no more can be kept than is sent."""
    for record in read_trials(run / "trials.jsonl"):
        if record.target is None:
            continue
        assert len(record.points) == 1
        assert 0.0 < float(record.value or 0.0) <= 4.0
        assert "goodput" in record.predicted


def test_a_launch_without_its_radix_cache_prefills_every_prompt_in_full(
    crowd: Path, context: Callable[..., Context]
) -> None:
    """A system prompt of 11 of 12 blocks, eight a second: 49,000 tokens a second without the cache."""
    h200 = context()
    window = representative_window(read_trace(crowd).scaled(2.0), 20.0)
    workload = TracedLoad(window=window, mark=mark_of(window, "crowd.jsonl", 2.0)).workload(16)
    slos = (Slo.parse("ttft:p99<500ms"),)
    engine = SimulatedEngine(World(noise=0.0), h200, seed=0, slos=slos)
    config = resolve(ServerConfig(tp_size=8), h200.arch, h200.machine, h200.version).config
    cached = engine.launch(config, 0).measure(workload)
    bare = engine.launch(replace(config, disable_radix_cache=True), 0).measure(workload)
    assert bare.ttft_ms["mean"] > 5 * cached.ttft_ms["mean"]
    assert float(bare.goodput_req_s or 0.0) < float(cached.goodput_req_s or 0.0)
    told = predict_load(h200, config, workload, slos)
    assert cached.output_tok_s == pytest.approx(told.output_tok_s)


def test_limits_are_percentiles_over_the_trace_where_tpot_is_improved(
    sgtune: Sgtune, crowd: Path, tmp_path: Path
) -> None:
    words = ("--objective", "tpot", "--trials", "3", "--runs", str(tmp_path), "--run", "a", "--json")
    done = sgtune(*TUNE, "--traffic", str(crowd), *words)
    best = document_of("tune", done.out)["best"]
    assert done.code == 0, done.err
    assert best["measured"]["ttft_ms"]["p99"] < 500.0
    assert best["value"] == pytest.approx(best["measured"]["tpot_ms"]["mean"], rel=0.05)


def test_a_run_is_resumed_under_the_same_window_alone(sgtune: Sgtune, run: Path, crowd: Path) -> None:
    words = ("--trials", "6", "--runs", str(run.parent), "--run", run.name, "--resume")
    before = (run / "trials.jsonl").read_text()
    other = sgtune(*TUNE, "--traffic", str(crowd), "--rate-scale", "2", *words)
    assert other.code == 2
    assert "traffic crowd.jsonl" in other.err
    again = sgtune(*TUNE, "--traffic", str(crowd), *words)
    assert again.code == 0, again.err
    assert (run / "trials.jsonl").read_text().startswith(before)


def test_a_run_interrupted_and_resumed_ends_as_one_that_was_not(sgtune: Sgtune, crowd: Path, tmp_path: Path) -> None:
    base = (*TUNE, "--traffic", str(crowd), "--confirm", "0", "--runs", str(tmp_path))
    assert sgtune(*base, "--run", "once", "--trials", "4").code == 0
    assert sgtune(*base, "--run", "twice", "--trials", "2").code == 0
    assert sgtune(*base, "--run", "twice", "--trials", "4", "--resume").code == 0
    once, twice = (read_trials(tmp_path / name / "trials.jsonl") for name in ("once", "twice"))
    assert [(r.config, r.points) for r in once] == [(r.config, r.points) for r in twice]


def test_the_launch_file_names_the_window_and_verify_asks_for_the_trace(
    sgtune: Sgtune, run: Path, crowd: Path, tmp_path: Path
) -> None:
    launch = run / "export" / "launch.sh"
    record = record_of(launch.read_text(), str(launch))
    assert record.traffic == read_manifest(run).traffic
    assert "crowd.jsonl, seconds" in launch.read_text()
    words = ("verify", str(launch), "--engine", "emulated")
    without = sgtune(*words)
    assert (without.code, "name that file with --traffic" in without.err) == (2, True)
    shorter = tmp_path / "crowd.jsonl"
    shorter.write_text("".join(crowd.read_text().splitlines(keepends=True)[:400]))
    other = sgtune(*words, "--traffic", str(shorter))
    assert (other.code, "is not the trace" in other.err) == (2, True)


@pytest.mark.slow
@pytest.mark.alone
def test_the_emulated_server_is_tuned_and_verified_under_the_trace(sgtune: Sgtune, crowd: Path, tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text(world_toml(World(name="quick", boot_s=0.2, noise=0.0)))
    engine = ("--engine", "emulated", "--world", str(world))
    asked = ("tune", "--hardware", "h200x8", *engine, *SLOS, "--window", "6s", "--confirm", "0", "--trials", "1")

    def attempt() -> None:
        runs = tmp_path / "runs"
        done = sgtune(*asked, "--traffic", str(crowd), "--runs", str(runs), "--json")
        best = document_of("tune", done.out)["best"]
        assert done.code == 0, done.err
        assert best["measured"]["verdict"] == "ok"
        assert best["output_tok_s"] == pytest.approx(best["predicted"]["output_tok_s"], rel=0.05)
        assert best["measured"]["ttft_ms"]["mean"] == pytest.approx(best["predicted"]["ttft_mean_ms"], rel=0.1)
        launch = next(Path(path) for path in document_of("tune", done.out)["exports"] if path.endswith("launch.sh"))
        again = sgtune("verify", str(launch), *engine, "--traffic", str(crowd), "--json")
        assert again.code == 0, again.err

    in_one_of_three(attempt)


REFUSED = {
    "a load beside it": (("--concurrency", "8"), "--traffic says how long"),
    "lengths beside it": (("--isl", "8", "--osl", "8"), "--isl, --osl"),
    "a rate as objective": (("--objective", "output_tok_s"), "goodput, tpot"),
    "slices": (("--fidelity", "slice"), "--fidelity slice"),
    "no window at all": (("--window", "soon"), "--window"),
    "a window of no time": (("--window", "1s"), "from 5s"),
    "a rate of nothing": (("--rate-scale", "0"), "--rate-scale is 0"),
    "columns of another form": (("--map", "input=tokens"), "--map"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_under_a_trace_is_refused(name: str, sgtune: Sgtune, crowd: Path, tmp_path: Path) -> None:
    words, message = REFUSED[name]
    done = sgtune(*TUNE, "--traffic", str(crowd), *words, "--runs", str(tmp_path / "runs"))
    assert (done.code, message in done.err.replace("\n", " ")) == (2, True), done.err
    assert not (tmp_path / "runs").exists()


def test_options_of_a_trace_need_one(sgtune: Sgtune, tmp_path: Path) -> None:
    for words in (("--window", "1m"), ("--rate-scale", "2"), ("--map", "input=x")):
        done = sgtune("tune", "--hardware", "h200x8", "--engine", "simulated", "--isl", "8", "--osl", "8", *words)
        assert (done.code, words[0] in done.err) == (2, True)
    bare = sgtune("tune", "--hardware", "h200x8", "--engine", "simulated")
    assert (bare.code, "--isl and --osl" in bare.err) == (2, True)


ROW = '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'
BROKEN: dict[str, tuple[bytes, str]] = {
    "cut off": ((ROW + ROW[:20]).encode(), "line 2"),
    "unsorted": ((ROW.replace(": 0", ": 9000") + ROW).encode(), "line 2"),
    "negative": ((ROW + ROW.replace(": 5", ": -5")).encode(), "line 2"),
    "without a column": (b"TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3\n", "line 1"),
    "packed": (gzip.compress(ROW.encode()), "gunzip"),
    "empty": (b"", "holds no requests"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line_and_no_run_is_begun(name: str, sgtune: Sgtune, tmp_path: Path) -> None:
    body, message = BROKEN[name]
    (tmp_path / "broken").write_bytes(body)
    done = sgtune(*TUNE, "--traffic", str(tmp_path / "broken"), "--runs", str(tmp_path / "runs"))
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (tmp_path / "runs").exists()


def test_marks_and_ends_of_lines_of_other_systems_are_read(sgtune: Sgtune, crowd: Path, tmp_path: Path) -> None:
    other = tmp_path / "crowd.jsonl"
    other.write_bytes(b"\xef\xbb\xbf" + crowd.read_bytes().replace(b"\n", b"\r\n"))
    plain, marked = (sgtune(*TUNE, "--traffic", str(path), "--dry-run", "--json") for path in (crowd, other))
    assert (plain.code, marked.code) == (0, 0), marked.err
    assert json.loads(plain.out)["traffic"] == json.loads(marked.out)["traffic"]
