"""What a run teaches: MTP's acceptance beside the engine, alike for tune and calibrate, and a refusal with reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.engine.profile import load_engine_profile
from models.engine.versions import profile_for
from models.version import parse_version

Sgtune = Callable[..., Any]
MACHINE = ("--hardware", "h200x8", "--sglang-version", "0.5.12")
QUESTION = (*MACHINE, "--isl", "300", "--osl", "200", "--concurrency", "32")
WORLD = 'name = "slow"\nnoise = 0.01\nacceptance = 0.5\n[parameters]\neta_w = 0.85\ntau_us = 1.2\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run in a world that accepts fewer drafts and streams weights slower than believed, and its document."""
    from tests.conftest import run_sgtune

    runs = tmp_path_factory.mktemp("runs")
    (runs / "world.toml").write_text(WORLD)
    ran = run_sgtune(
        "tune", *QUESTION, "--engine", "simulated", "--world", str(runs / "world.toml"), "--trials", "8",
        "--confirm", "1", "--runs", str(runs), "--run", "a", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return runs / "a", json.loads(ran.out)


def test_calibrate_finds_the_acceptance_and_leaves_the_engine_where_it_is(
    sgtune: Sgtune, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "here.json"
    ran = sgtune("calibrate", "--points", str(run[0]), "--out", str(out), "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["mtp_acceptance"] == pytest.approx(0.5, abs=0.03), "the belief was 0.7"
    truth = profile_for(parse_version("0.5.12")).parameters
    found = load_engine_profile(out).parameters
    assert found.eta_w == pytest.approx(0.85 * truth.eta_w, rel=0.06)
    assert found.tau_us == pytest.approx(1.2 * truth.tau_us, rel=0.15)
    assert len(document["outliers"]) <= document["points"] / 5


def test_tune_and_calibrate_make_the_same_profile_of_the_same_run(
    sgtune: Sgtune, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "here.json"
    assert sgtune("calibrate", "--points", str(run[0]), "--out", str(out)).code == 0
    assert load_engine_profile(out) == load_engine_profile(run[0] / "profile.json")
    assert run[1]["calibrated"]["mtp_acceptance"] == load_engine_profile(out).mtp_acceptance


def test_a_plan_with_the_profile_foretells_what_the_run_measured(
    sgtune: Sgtune, run: tuple[Path, dict[str, Any]]
) -> None:
    best = run[1]["best"]
    words = [*best["argv"], "--mem-fraction-static", str(best["config"]["mem_fraction_static"])]
    options = ("--isl", "300", "--osl", "200", "--concurrency", "32", "--profile", str(run[0] / "profile.json"))
    ran = sgtune("check", "--json", *MACHINE, *options, "--", *words)
    predicted = json.loads(ran.out)["prediction"]["output_tok_s"]
    assert predicted == pytest.approx(best["output_tok_s"], rel=0.05)


def test_an_acceptance_that_is_typed_goes_before_the_profiles_own(
    sgtune: Sgtune, run: tuple[Path, dict[str, Any]]
) -> None:
    asked = ("plan", *QUESTION, "--json", "--profile", str(run[0] / "profile.json"))
    own, typed = (json.loads(sgtune(*asked, *more).out) for more in ((), ("--mtp-acceptance", "0.9")))
    assert typed["candidates"][0]["prediction"]["output_tok_s"] > own["candidates"][0]["prediction"]["output_tok_s"]


def test_points_of_two_machines_are_refused_with_the_reason_and_nothing_is_written(
    sgtune: Sgtune, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    points = tmp_path / "points.jsonl"
    lines = [
        {"id": f"p{n}", "tp": 8, "isl": 1000, "osl": 500, "concurrency": clients, "num_prompts": 4 * clients,
         "tpot_mean_ms": tpot * (1.0 if n % 2 else 1.8)}
        for n, (clients, tpot) in enumerate([(1, 8.2), (2, 9.1), (4, 10.6), (8, 13.3), (16, 18.0), (32, 24.0)])
    ]  # fmt: skip
    points.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "here.json"
    ran = sgtune("calibrate", "--points", str(points), *MACHINE, "--out", str(out))
    assert ran.code == 2
    assert "lie further from the model" in ran.err
    assert "sgtune validate" in ran.err
    assert not out.exists()


def test_a_tune_whose_points_do_not_fit_the_model_ends_without_a_profile(
    sgtune: Sgtune, monkeypatch: pytest.MonkeyPatch, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    monkeypatch.setattr("tuner.calibrate.learned.MOST_DISCOUNTED", -1.0)
    monkeypatch.setattr("tuner.calibrate.learned.ALWAYS_ALLOWED", -1)
    monkeypatch.setattr("tuner.calibrate.learned.FEWEST_JUDGED", 0)
    ran = sgtune(
        "tune", *QUESTION, "--engine", "simulated", "--world", str(run[0].parent / "world.toml"), "--trials", "1",
        "--confirm", "0", "--runs", str(tmp_path / "new"), "--run", "b",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "no profile: " in ran.out
    assert not (tmp_path / "new/b/profile.json").exists()
