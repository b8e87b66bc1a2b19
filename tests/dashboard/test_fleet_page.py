"""The Plan page for fleets: kinds of deployments against each other, their pools, and where requests wait."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dashboard.charts import fleet_charts
from dashboard.charts import plan_charts as charts
from dashboard.readers.commands import plan_answer
from dashboard.readers.fleets import (
    DeploymentKind,
    FleetCurve,
    clients_of,
    frontier,
    is_fleet,
    kind_of,
    one_large_server,
    running_in_all,
    stages,
)
from dashboard.readers.plan_inputs import PlanInputs
from planner.fleets.deployed import candidate_of, server_context
from planner.fleets.plan_document import deployment_of
from tests.dashboard.test_pages import open_page, said, tile

FLEET = PlanInputs(hardware="4xh200x8", sglang_version="0.5.23", isl=8000, osl=1000, concurrency=512)
ONE_NODE = replace(FLEET, hardware="h200x8", isl=500, osl=500, concurrency=64)


@pytest.fixture(scope="module")
def drawn() -> list[FleetCurve]:
    return FLEET.fleet_curves()


def test_one_node_is_no_fleet_and_several_are() -> None:
    assert not is_fleet(ONE_NODE.plan())
    assert is_fleet(FLEET.plan())
    assert clients_of(FLEET.plan()) == 512


def test_every_kind_is_drawn_each_at_the_figures_of_the_plan(drawn: list[FleetCurve]) -> None:
    candidates = FLEET.plan().found.candidates
    assert {curve.kind for curve in drawn} == set(DeploymentKind)
    for curve, candidate in zip(drawn, candidates, strict=False):
        assert curve.tok_s_per_gpu[-1] == pytest.approx(candidate.output_tok_s / 32)
        assert curve.user_tok_s[-1] == pytest.approx(candidate.prediction.user_tok_s)
        assert curve.clients[-1] == 512


def test_fewer_clients_are_those_of_the_whole_fleet(drawn: list[FleetCurve]) -> None:
    """A point in between is what the whole deployment does with so many clients in all."""
    plan = FLEET.plan()
    context_of = partial(server_context, plan.question)
    for curve, candidate in zip(drawn, plan.found.candidates[:2], strict=False):
        half = candidate_of(deployment_of(candidate), context_of, plan.question.workload(256), ())
        assert curve.tok_s_per_gpu[curve.clients.index(256)] == pytest.approx(half.output_tok_s / half.gpus)


def test_one_large_server_is_beside_copies_that_beat_it() -> None:
    large = one_large_server(FLEET.plan())
    best = FLEET.plan().best
    assert large is not None
    assert best is not None
    assert (kind_of(large), large.gpus) == (DeploymentKind.ONE, 32)
    assert large.output_tok_s < best.output_tok_s


def test_nothing_drawn_lies_beyond_the_frontier(drawn: list[FleetCurve]) -> None:
    best = frontier(drawn)
    assert best == sorted(best)
    for curve in drawn:
        for speed, rate in zip(curve.user_tok_s, curve.tok_s_per_gpu, strict=True):
            assert any(x >= speed and y >= rate for x, y in best)


def test_the_stages_of_a_request_add_up_to_its_life() -> None:
    plan = FLEET.plan()
    for kind in (DeploymentKind.APART, DeploymentKind.COPIES):
        candidate = next(c for c in plan.found.candidates if kind_of(c) is kind)
        parts = stages(plan, candidate)
        assert ("KV transfer" in parts) is (kind is DeploymentKind.APART)
        assert all(seconds >= 0.0 for seconds in parts.values())
        assert sum(parts.values()) == pytest.approx(candidate.prediction.e2e_ms["mean"] / 1e3, rel=0.03)


def test_the_pools_are_drawn_server_by_server() -> None:
    plan = FLEET.plan()
    candidate = next(c for c in plan.found.candidates if kind_of(c) is DeploymentKind.APART)
    deployment = deployment_of(candidate)
    figure = fleet_charts.pools(deployment, stages(plan, candidate))
    json.loads(figure.to_json())
    assert len(figure.layout.shapes) == 1 + deployment.servers
    words = " ".join(str(note.text) for note in figure.layout.annotations)
    assert all(f"{pool.servers} {pool.role}: {pool.config.label}" in words for pool in deployment.pools)
    life = fleet_charts.waits({candidate.name: stages(plan, candidate)})
    assert sum(bar.x[0] for bar in life.data) == pytest.approx(sum(stages(plan, candidate).values()))


def test_the_single_server_chart_counts_all_gpus_of_a_fleet() -> None:
    plan = FLEET.plan()
    marks = [trace for trace in charts.interactivity(plan, FLEET.curves(), 0).data if trace.mode == "markers"]
    assert [mark.y[0] for mark in marks] == pytest.approx([c.output_tok_s / 32 for c in plan.found.candidates])


def test_the_sentence_and_the_figures_are_those_of_all_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = FLEET.plan().best
    assert best is not None
    assert plan_answer(FLEET.plan()).startswith(f"512 clients fit on {best.name} on 4 nodes at")
    query = {"hw": "4xh200x8", "isl": "8000", "osl": "1000", "clients": "512"}
    app = open_page("plan", tmp_path, monkeypatch, **query)
    assert "512 clients fit on" in said(app)
    assert tile(app, "tok/s (90 % band)") == f"{best.output_tok_s:,.0f}"
    assert tile(app, "Requests at once") == f"{running_in_all(best):,.0f}"
    assert app.selectbox(key="candidate").options[0] == f"1. {best.name}"


def test_of_a_queue_that_grows_only_the_decode_is_told() -> None:
    plan = replace(FLEET, isl=1000, concurrency=None, request_rate=800.0).plan()
    best = plan.best
    assert best is not None
    parts = stages(plan, best)
    assert list(parts) == ["decode"]
    assert 0.0 < parts["decode"] < 1e3
    words = [str(note.text) for note in fleet_charts.pools(deployment_of(best), parts).layout.annotations]
    assert "a queue<br>without end" in words
