"""What a world was played for says so: in documents, titles, launch files, points and the profiles made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.launch_files.targets import Target

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "100", "--osl", "50", "--concurrency", "8", "--sglang-version", "0.5.12")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run in a world, and what the command printed."""
    from tests.conftest import run_sgtune

    runs = tmp_path_factory.mktemp("runs")
    options = ("--engine", "simulated", "--trials", "2", "--confirm", "0", "--runs", str(runs), "--run", "a")
    ran = run_sgtune("tune", *QUESTION, *options)
    assert ran.code == 0, ran.err
    return runs, ran


def test_tune_without_an_engine_names_the_choices_and_starts_nothing(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune("tune", *QUESTION, "--runs", str(tmp_path / "runs"))
    assert ran.code == 2
    assert all(word in ran.err for word in ("--engine", "simulated", "emulated", "local", "docker"))
    assert not (tmp_path / "runs").exists()


def test_slices_without_an_engine_name_the_choices_and_start_nothing(sgtune: Sgtune, tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    ran = sgtune("calibrate", "--slice", "4,8", "--hardware", "h200x8", "--out", str(out))
    assert ran.code == 2
    assert all(word in ran.err for word in ("--engine", "simulated", "emulated", "local", "docker"))
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_calls_a_played_world_simulated_and_never_measured(played: tuple[Path, Any]) -> None:
    ran = played[1]
    assert "SIMULATED, best first" in ran.out
    assert "SIMULATED best" in ran.out
    assert "measured, best first" not in ran.out
    assert "SIMULATED: world 'default'" in ran.err


def test_every_file_of_a_played_run_says_so(played: tuple[Path, Any]) -> None:
    run = played[0] / "a"
    for name in ("run.toml", "trials/0/command.sh", "export/launch.sh", "export/sglang.yaml"):
        assert "SIMULATED" in (run / name).read_text(), name
    assert json.loads((run / "result.json").read_text())["simulated"] is True
    for name in ("trials.jsonl", "trials/0/points.jsonl", "trials/0/result.json"):
        documents = [(run / name).read_text()] if name.endswith(".json") else (run / name).read_text().splitlines()
        assert all(json.loads(document)["simulated"] is True for document in documents), name


def test_a_bundle_of_a_played_run_is_not_called_ready(sgtune: Sgtune, played: tuple[Path, Any], tmp_path: Path) -> None:
    ran = sgtune("export", "--runs", str(played[0]), "--run", "a", "--bundle", str(tmp_path), "--json")
    assert json.loads(ran.out)["simulated"] is True
    title = (tmp_path / "README.md").read_text().splitlines()[0]
    assert "SIMULATED" in title
    assert "ready to start" not in title
    for target in Target:
        assert "# SIMULATED: " in (tmp_path / target.file_name).read_text(), target
    for name in ("bundle.json", "trial.json", "run.json"):
        assert json.loads((tmp_path / name).read_text())["simulated"] is True, name


def test_a_bundle_of_a_plan_is_no_simulation(sgtune: Sgtune, tmp_path: Path) -> None:
    assert sgtune("plan", *QUESTION, "--out", str(tmp_path / "plan.json")).code == 0
    ran = sgtune("export", "--plan", str(tmp_path / "plan.json"), "--bundle", str(tmp_path / "b"), "--json")
    assert json.loads(ran.out)["simulated"] is False
    assert "SIMULATED" not in (tmp_path / "b/README.md").read_text()


def test_a_profile_of_a_played_run_carries_the_word_into_plans(
    sgtune: Sgtune, played: tuple[Path, Any], tmp_path: Path
) -> None:
    out = tmp_path / "profile.json"
    ran = sgtune("calibrate", "--points", str(played[0] / "a"), "--out", str(out), "--json")
    assert json.loads(ran.out)["simulated"] is True
    for profile in (out, played[0] / "a" / "profile.json"):
        assert "SIMULATED" in json.loads(profile.read_text())["source"]
        assert "SIMULATED" in sgtune("plan", *QUESTION, "--profile", str(profile)).out
