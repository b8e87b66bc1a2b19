"""What launches teach the sampler about rows it has not launched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.version import parse_version
from planner.plans.make import PlanQuestion
from tuner.choices import EngineName, Objective, SamplerName
from tuner.engines.world import World
from tuner.run.question import TuneQuestion
from tuner.run.setup import prepare
from tuner.search.closed_form import of_point
from tuner.search.configurations import PHYSICS, Candidates, candidates_of, undominated
from tuner.search.gaussian_process import SCATTER, SIZES, Posterior, TrainingSet, learn

RATE = of_point("output_tok_s")
NOTHING = np.zeros(len(PHYSICS))
COMMON = 0.05


def train(rows: Candidates, log_measured: np.ndarray) -> list[TrainingSet]:
    return [TrainingSet(rows=rows, log_measured=log_measured)]


@pytest.fixture(scope="module")
def rows() -> Candidates:
    plan = PlanQuestion(
        hardware=hardware_from_catalogue("h200x8"), arch=deepseek_r1(), version=parse_version("0.5.12"), isl=1000,
        osl=1000, concurrency=256,
    )  # fmt: skip
    asked = TuneQuestion(
        plan=plan, objective=Objective.OUTPUT_TOK_S, engine=EngineName.SIMULATED, world=World(), trials=3,
        budget_s=1e9, seed=0, sampler=SamplerName.MODEL, run="a", runs=Path("runs"), resume=False,
    )  # fmt: skip
    return candidates_of(prepare(asked).space)


@pytest.fixture(scope="module")
def launched(rows: Candidates) -> Candidates:
    """Return rows of different layouts and MTP depths, the best predicted of each."""
    belief = RATE(rows, NOTHING)
    first: dict[str, int] = {}
    for index in np.argsort(-belief, kind="stable").tolist():
        first.setdefault(rows.configs[index].label, index)
    return rows.take(np.array(list(first.values())[:8]))


def test_what_was_launched_is_known_and_the_rest_less_so(launched: Candidates) -> None:
    told, rest = launched.take(np.arange(3)), launched.take(np.arange(3, 8))
    measured = RATE(told, NOTHING) + np.log([1.1, 0.9, 1.0])
    again = learn(train(told, measured), told, RATE, COMMON)
    assert again.weight @ again.mean == pytest.approx(measured, abs=2.5 * SCATTER)
    unknown = learn(train(told, measured), rest, RATE, COMMON)
    assert float((unknown.weight @ unknown.deviation).min()) > float((again.weight @ again.deviation).max())


def test_a_row_that_differs_in_nothing_that_matters_is_no_improvement_however_lucky_the_measurement(
    rows: Candidates, launched: Candidates
) -> None:
    best = launched.params[0]
    twins = [
        i for i, p in enumerate(rows.params) if {**p, "mem_fraction_static": 0} == {**best, "mem_fraction_static": 0}
    ]
    same = rows.take(np.array(twins))
    close = np.abs(RATE(same, NOTHING) - RATE(launched, NOTHING)[0]) < 1e-3
    lucky = RATE(launched, NOTHING) + np.array([0.08, *np.zeros(7)])
    ahead = learn(train(launched, lucky), same, RATE, COMMON, against=0)
    assert int(close.sum()) > 1
    assert np.abs((ahead.weight @ ahead.mean)[close]) == pytest.approx(0.0, abs=2e-3)
    assert float((ahead.weight @ ahead.deviation)[close].max()) < 0.005


def test_data_that_contradict_the_physics_make_large_effects_likelier(launched: Candidates) -> None:
    belief = RATE(launched, NOTHING)
    agree = learn(train(launched, belief + 0.01 * np.array([1, -1, 1, -1, 1, -1, 1, -1])), launched, RATE, COMMON)
    contradict = learn(train(launched, belief + 0.3 * np.array([1, -1, -1, 1, -1, 1, 1, -1])), launched, RATE, COMMON)
    large = np.array([knobs >= 2.0 for _, knobs in SIZES])
    assert agree.weight.sum() == pytest.approx(1.0)
    assert float(agree.weight[large].sum()) < 0.5 < float(contradict.weight[large].sum())


def test_nothing_measured_leaves_the_belief(launched: Candidates) -> None:
    before = learn(train(launched.take(np.zeros(0, dtype=np.intp)), np.zeros(0)), launched, RATE, COMMON)
    assert before.weight @ before.mean == pytest.approx(RATE(launched, NOTHING))


# What knobs do beyond the physics, in log units: to a baseline, and to four other layouts.
EFFECTS = np.array([0.0, 0.25, -0.25, 0.2, -0.2])


def after_slices(launched: Candidates, whole: np.ndarray | None) -> Posterior:
    """What slices that show EFFECTS say of the fifth row, which ran as a slice alone; `whole`: what the others did."""
    tried = launched.take(np.arange(5))
    belief = RATE(tried, NOTHING)
    count = 1 if whole is None else 4
    shown = (belief + (EFFECTS if whole is None else whole))[:count]
    full = TrainingSet(rows=tried.take(np.arange(count)), log_measured=shown)
    slices = TrainingSet(rows=tried, log_measured=belief + EFFECTS, sliced=True)
    return learn([full, slices], tried.take(np.array([4])), RATE, COMMON)


def test_the_share_that_carries_over_is_learned_from_what_ran_as_slice_and_as_whole(launched: Candidates) -> None:
    belief = float(RATE(launched.take(np.array([4])), NOTHING)[0])
    alone, honest, false = (after_slices(launched, whole) for whole in (None, EFFECTS, -EFFECTS))
    assert false.carry < 0.5 < alone.carry < honest.carry
    assert float((honest.weight @ honest.mean)[0]) - belief == pytest.approx(EFFECTS[4], abs=0.05)
    spread = [float((found.weight @ found.deviation)[0]) for found in (honest, alone, false)]
    assert spread[0] < 0.5 * spread[1] < 0.5 * spread[2]


def test_without_slices_nothing_carries_over(launched: Candidates) -> None:
    assert learn(train(launched, RATE(launched, NOTHING)), launched, RATE, COMMON).carry == pytest.approx(1.0)


def test_a_smaller_memory_fraction_stands_for_others_only_where_the_cache_holds_as_many_requests(
    rows: Candidates,
) -> None:
    belief = RATE(rows, NOTHING)
    kept = set(undominated(rows, belief, np.zeros(len(belief))).tolist())
    assert len(kept) < len(rows.configs) / 2
    for index in range(0, len(rows.configs), 7):
        config = rows.configs[index]
        needed = -(-256 // config.attn_dp_size) * 2000
        room = np.minimum(rows.memory.kv_tokens_per_rank, needed)
        assert any(
            room[j] >= room[index]
            and rows.memory.free[j] >= rows.memory.free[index]
            and belief[j] >= belief[index] - 0.002
            for j in kept
            if rows.configs[j].label == config.label
        )
