"""A whole tuning run on the simulated engine: its result, its evidence, and what a crash costs."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from tests.children import start_sgtune
from tuner.cli.commands.tune import parse_duration_s

Sgtune = Callable[..., Any]
QUESTION = (
    "tune", "--hardware", "nf5688g7", "--isl", "1000", "--osl", "1000", "--concurrency", "1024",
    "--engine", "simulated",
)  # fmt: skip
SMALL = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
    "--sglang-version", "0.5.12",
)  # fmt: skip


@pytest.mark.slow
def test_the_founding_question_is_tuned_in_under_a_minute(sgtune: Sgtune, tmp_path: Path) -> None:
    began_s = time.process_time()  # of a core: what else runs on the machine is not the tuner's
    ran = sgtune(*QUESTION, "--trials", "12", "--runs", str(tmp_path), "--run", "a", "--json")
    assert time.process_time() - began_s < 60
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["launches"] == 12
    assert document["best"]["measured"]["output_tok_s"] > 3975.76
    assert document["best"]["measured"]["output_tok_s"] > document["baseline"]["measured"]["output_tok_s"]
    low, high = document["best"]["interval"]
    assert low <= document["best"]["measured"]["output_tok_s"] <= high
    assert "trial 0 TP8 (SGLang default" in ran.err
    for name in ("run.toml", "hardware.json", "trials.jsonl", "study.db", "result.json", "export/launch.sh",
                 "export/sglang.yaml", "trials/0/command.sh", "trials/0/points.jsonl"):  # fmt: skip
        assert (tmp_path / "a" / name).is_file()
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == document


def test_the_founding_question_with_the_abilities_of_0_4_3(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(
        *QUESTION, "--sglang-version", "0.4.3", "--trials", "3", "--confirm", "0", "--runs", str(tmp_path), "--json"
    )
    assert ran.code == 0, ran.err
    best = json.loads(ran.out)["best"]
    assert best["output_tok_s"] > 3975.76
    assert "--enable-dp-attention" in best["argv"]


def test_same_seed_same_run_another_seed_another(sgtune: Sgtune, tmp_path: Path) -> None:
    arguments = (*SMALL, "--trials", "9", "--runs", str(tmp_path), "--json")
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert sgtune(*arguments, "--run", name, "--seed", seed).code == 0
    evidence = {name: (tmp_path / name / "trials.jsonl").read_bytes() for name in "abc"}
    assert evidence["a"] == evidence["b"]
    assert evidence["a"] != evidence["c"]


def records_in(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_same_study(sgtune: Sgtune, tmp_path: Path) -> None:
    """SIGKILL soon after each of the first records: the evidence equals that of an undisturbed run."""
    arguments = (*QUESTION, "--trials", "9", "--runs", str(tmp_path), "--json")
    assert sgtune(*arguments, "--run", "whole").code == 0
    whole = (tmp_path / "whole" / "trials.jsonl").read_text()
    rng = random.Random(1)
    file = tmp_path / "cut" / "trials.jsonl"
    for _ in range(4):
        seen = records_in(file)
        process = start_sgtune(*arguments, "--run", "cut", *(("--resume",) if seen else ()))
        while records_in(file) == seen and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        assert records_in(file) > seen, "records only grow"
        assert whole.startswith(file.read_text().rpartition("\n")[0])
    process = start_sgtune(*arguments, "--run", "cut", "--resume")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert file.read_text() == whole
    best = [json.loads((tmp_path / run / "result.json").read_text())["best"] for run in ("whole", "cut")]
    assert best[0] == best[1]


def test_an_interrupt_exits_130_and_can_be_resumed(tmp_path: Path) -> None:
    arguments = (*QUESTION, "--trials", "12", "--runs", str(tmp_path), "--run", "a")
    process = start_sgtune(*arguments)
    file = tmp_path / "a" / "trials.jsonl"
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    process = start_sgtune(*SMALL, "--runs", str(tmp_path), "--run", "a", "--resume")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was created with different settings" in err


def test_a_lost_index_is_rebuilt_from_the_evidence(sgtune: Sgtune, tmp_path: Path) -> None:
    arguments = (*SMALL, "--runs", str(tmp_path), "--confirm", "0", "--json")
    assert sgtune(*arguments, "--run", "whole", "--trials", "9").code == 0
    assert sgtune(*arguments, "--run", "a", "--trials", "4").code == 0
    (tmp_path / "a" / "study.db").write_bytes(b"not a database")
    with (tmp_path / "a" / "trials.jsonl").open("a") as stream:
        stream.write('{"number": 4, "sou')
    ran = sgtune(*arguments, "--run", "a", "--trials", "9", "--resume")
    assert ran.code == 0
    assert "has been cut off" in ran.err
    whole, cut = ((tmp_path / run / "trials.jsonl").read_text() for run in ("whole", "a"))
    assert whole == cut


def test_limits_nothing_meets_exit_3_with_the_nearest(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*SMALL, "--trials", "3", "--runs", str(tmp_path), "--slo", "tpot:mean<1ms", "--json")
    assert ran.code == 3
    document = json.loads(ran.out)
    assert document["best"] is None
    assert "missed" in document["nearest"]["misses"][0]
    assert document["infeasible_launches"] == document["launches"] == 3


def test_out_of_memory_is_learned_not_fatal(sgtune: Sgtune, tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text('name = "tight"\nextra_memory_gib = 9.0\n')
    ran = sgtune(*SMALL, "--trials", "6", "--runs", str(tmp_path), "--world", str(world), "--json")
    document = json.loads(ran.out)
    outcomes = [trial["outcome"] for trial in document["trials"]]
    assert "infeasible" in outcomes
    assert document["infeasible_launches"] >= 1
    assert any("out of memory" in trial["reason"] for trial in document["trials"])


def test_budget_stops_the_run(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*SMALL, "--trials", "50", "--budget", "20m", "--runs", str(tmp_path), "--json")
    document = json.loads(ran.out)
    assert document["stopped"] == "the budget is spent"
    assert document["launches"] < 6


def test_dry_run_writes_nothing(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*SMALL, "--runs", str(tmp_path / "runs"), "--dry-run")
    assert ran.code == 0
    assert "SGLang default" in ran.out
    assert not (tmp_path / "runs").exists()


def test_default_names_do_not_collide(sgtune: Sgtune, tmp_path: Path) -> None:
    for _ in range(2):
        assert sgtune(*SMALL, "--trials", "1", "--runs", str(tmp_path)).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h200x8-200-200-c16", "h200x8-200-200-c16-2"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--trials", "0"), "--trials is 0"),
        (("--concurrency", "0"), "--concurrency is 0"),
        (("--isl", "0"), "--isl is 0"),
        (("--slo", "fast"), "does not parse"),
        (("--seed", "-1"), "--seed is -1"),
        (("--run", "../escape"), "--run is '../escape'"),
        (("--budget", "soon"), "--budget is 'soon'"),
        (("--resume", "--run", "nothing"), "no run"),
        (("--world", "/nonexistent.toml"), "cannot read world"),
        (("--runs", "/proc/runs"), "cannot write"),
        (("--hardware", "h100x8"), "It fits on 2 nodes"),
    ],
)
def test_bad_input_writes_nothing(sgtune: Sgtune, tmp_path: Path, more: tuple[str, ...], complaint: str) -> None:
    runs = tmp_path / "runs"
    ran = sgtune(*SMALL, "--runs", str(runs), *more)
    assert ran.code == 2
    assert complaint in ran.err
    assert ran.err.startswith("error: ")
    assert not runs.exists()


def test_export_writes_any_trial_and_names_what_is_missing(sgtune: Sgtune, tmp_path: Path) -> None:
    assert sgtune(*SMALL, "--trials", "3", "--runs", str(tmp_path), "--run", "a").code == 0
    out = tmp_path / "launch"
    common = ("export", "--runs", str(tmp_path), "--run", "a", "--out", str(out))
    assert sgtune(*common, "--target", "bash").code == 0
    assert [path.name for path in out.iterdir()] == ["launch.sh"]
    assert sgtune(*common, "--trial", "1", "--model-path", "/models/R1").code == 0
    assert "trial 1 (" in (out / "sglang.yaml").read_text()
    assert "/models/R1" in (out / "launch.sh").read_text()
    missing = sgtune(*common, "--trial", "99")
    assert (missing.code, "no trial 99" in missing.err) == (2, True)
    unknown = sgtune("export", "--runs", str(tmp_path), "--run", "b", "--out", str(out))
    assert (unknown.code, "no run 'b'" in unknown.err, "known: a" in unknown.err) == (2, True, True)
    nowhere = sgtune("export", "--runs", str(tmp_path / "none"), "--run", "b", "--out", str(out))
    assert (nowhere.code, "--runs DIR" in nowhere.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("4h", 14400), ("1h30m", 5400), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "h", "-4h", "4h4h"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        parse_duration_s(text)
