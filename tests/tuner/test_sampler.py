"""The model-guided sampler: what it knows beforehand, what it learns, and when it stops."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.version import parse_version
from planner.plans.make import PlanQuestion
from planner.plans.search import SAFE_FREE_GIB
from tuner.choices import EngineName, Objective, SamplerName
from tuner.engines.world import World
from tuner.run.question import TuneQuestion
from tuner.run.setup import Prepared, prepare
from tuner.search.closed_form import log_figure, of_point
from tuner.search.configurations import PHYSICS, Candidates, candidates_of, slopes
from tuner.search.memory_belief import chance_it_holds, known_missing_gib

Sgtune = Callable[..., Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    plan = PlanQuestion(
        hardware=hardware_from_catalogue("h200x8"), arch=deepseek_r1(), version=parse_version("0.5.12"), isl=200,
        osl=200, concurrency=16,
    )  # fmt: skip
    return prepare(
        TuneQuestion(
            plan=plan,
            objective=Objective.OUTPUT_TOK_S,
            engine=EngineName.SIMULATED,
            world=World(),
            trials=3,
            budget_s=1e9,
            seed=0,
            sampler=SamplerName.MODEL,
            run="a",
            runs=tmp_path_factory.mktemp("runs"),
            resume=False,
        )
    )


@pytest.fixture(scope="module")
def rows(prepared: Prepared) -> Candidates:
    return candidates_of(prepared.space)


def test_every_candidate_is_what_its_parameters_stand_for_and_has_room(prepared: Prepared, rows: Candidates) -> None:
    assert len(rows.configs) == len(set(rows.configs)) > 1000
    assert float(rows.memory.free.min()) >= SAFE_FREE_GIB
    for index in random.Random(0).sample(range(len(rows.configs)), 60):
        assert prepared.space.config(rows.params[index]) == rows.configs[index]


def test_the_slopes_are_the_equations_own(rows: Candidates) -> None:
    nothing = np.zeros(len(PHYSICS))
    here, by = slopes(rows, nothing, of_point("tpot"))
    assert here == pytest.approx(log_figure(rows.steady(nothing), "tpot"))
    aside = nothing.copy()
    aside[list(PHYSICS).index("tau_us")] = 1.0
    change = log_figure(rows.steady(aside), "tpot") - here
    assert by[:, list(PHYSICS).index("tau_us")] == pytest.approx(change, abs=0.02)
    assert float(change.min()) >= 0.0, "slower launches never make a token faster"


def test_memory_learns_from_both_sides() -> None:
    free = np.array([1.0, 3.0, 8.0])
    blank = chance_it_holds(free, [])
    assert list(blank) == sorted(blank)
    held = chance_it_holds(free, [(3.0, True)])
    assert held[1] > 0.9
    assert held[0] > blank[0]
    failed = chance_it_holds(free, [(3.0, False)])
    assert failed[1] < 0.1
    assert failed[2] > failed[1]
    assert known_missing_gib([(3.0, False), (5.0, True), (4.0, False)]) == 4.0


def test_without_scikit_learn_tpe_proposes_and_asking_for_the_model_names_the_extra(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name
        for name in sys.modules
        if name in ("tuner.search.model_sampler", "tuner.search.gaussian_process") or name.split(".")[0] == "sklearn"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    asked = (
        "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
        "--trials", "1", "--runs", str(tmp_path),
    )  # fmt: skip
    silent = sgtune(*asked, "--run", "a", "--json")
    assert silent.code == 0, silent.err
    assert "pip install -e '.[tune]'" in silent.err
    named = sgtune(*asked, "--run", "b", "--sampler", "model")
    assert named.code == 2
    assert "pip install -e '.[tune]'" in named.err


def test_it_stops_by_itself_when_nothing_is_worth_a_launch(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(
        "tune", "--hardware", "h200x1", "--model", str(Path(__file__).parents[2] / "tests/data/small_model.json"),
        "--isl", "200", "--osl", "200", "--concurrency", "4", "--engine", "simulated", "--sglang-version", "0.5.12",
        "--no-mtp", "--trials", "60", "--runs", str(tmp_path), "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["launches"] < 60
    assert "no launch is expected to improve" in (ran.out + ran.err)
