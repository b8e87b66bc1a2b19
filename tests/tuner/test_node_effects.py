"""Nodes that are slow are named, those that are not are not, and what a node does is no configuration's gain."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.serving.estimate import Context
from models.workload import Workload
from planner.plans.space import default_space
from tuner.evidence.node_effects import node_effects
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.seam import Measurement, Place
from tuner.search.closed_form import of_point
from tuner.search.configurations import PHYSICS, candidates_of
from tuner.search.gaussian_process import TrainingSet, learn
from tuner.search.space import TuningSpace, tuning_space

NODES = ("n1", "n2", "n3")


@pytest.fixture
def space(context: Callable[..., Context]) -> TuningSpace:
    where = context("h200x8", "0.5.12")
    layouts = default_space(where.machine, where.version, arch=where.arch, mtp=False)
    kept = {layout.layout: layout for layout in layouts.layouts}
    return tuning_space(layouts, kept, where, Workload.checked(1000, 1000, 64), ())


def launches(space: TuningSpace, rates: dict[str, float], seed: int, confirmed: int = 2) -> list[TrialRecord]:
    """Twelve configurations, four a node, and the first ones again on the next node."""
    dice, rows = random.Random(seed), candidates_of(space)
    own = [dice.gauss(0.0, 0.10) for _ in range(12)]
    ran = [(at, NODES[at % 3]) for at in range(12)] + [(at, NODES[(at + 1) % 3]) for at in range(confirmed)]
    records = []
    for number, (at, node) in enumerate(ran):
        rate = 1000.0 * rates.get(node, 1.0) * math.exp(own[at] + dice.gauss(0.0, 0.015))
        point = Measurement(
            concurrency=64, achieved_in_flight=64.0, output_tok_s=rate,
            output_tok_s_interval=(0.98 * rate, 1.02 * rate), ttft_ms={"mean": 1.0}, tpot_ms={"mean": 1.0},
            e2e_ms={"mean": 1.0}, duration_s=10.0,
        )  # fmt: skip
        records.append(
            TrialRecord(
                number=number, source="sampler", params=rows.params[at], config=rows.configs[at],
                outcome=TrialOutcome.MEASURED, predicted={"output_tok_s": 1000.0}, objective=math.log(rate),
                constraints={}, points=(point,), repeats=at if number >= 12 else None,
                place=Place(node=node, host=node),
            )
        )  # fmt: skip
    return records


def slow(records: Sequence[TrialRecord]) -> list[str]:
    return [effect.node for effect in node_effects(records) if effect.slow]


def test_a_node_that_costs_a_fifth_is_named_by_twelve_launches_and_two_confirmations(space: TuningSpace) -> None:
    named = [slow(launches(space, {"n3": 0.8}, seed)) for seed in range(20)]
    assert named.count(["n3"]) >= 18, named


def test_nodes_that_are_alike_are_hardly_ever_called_slow(space: TuningSpace) -> None:
    named = [slow(launches(space, {}, seed)) for seed in range(40)]
    assert sum(bool(nodes) for nodes in named) <= 4, named


def test_one_node_says_nothing(space: TuningSpace) -> None:
    records = [replace(r, place=Place(node="n1", host="a")) for r in launches(space, {}, 0)]
    assert node_effects(records) == []
    assert node_effects([replace(r, place=None) for r in records]) == []


def test_what_a_slow_node_did_is_not_laid_at_the_configuration_tried_there(space: TuningSpace) -> None:
    """A was 20 % slower on n2 than on n1; B ran on n2 alone, and would be faster elsewhere."""
    rows, figure, nothing = candidates_of(space), of_point("tpot"), np.zeros(len(PHYSICS))
    launched, asked = rows.take(np.array([0, 0, 1])), rows.take(np.array([1]))
    seen = figure(launched, nothing) + np.array([0.0, 0.2, 0.2])
    ran = (("n1",), ("n2",), ("n2",))
    blind = learn([TrainingSet(rows=launched, log_measured=seen)], asked, figure, 0.05)
    aware = learn([TrainingSet(rows=launched, log_measured=seen, nodes=ran)], asked, figure, 0.05)
    assert float((aware.weight @ aware.mean)[0]) < float((blind.weight @ blind.mean)[0]) - 0.03
