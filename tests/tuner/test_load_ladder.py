"""The ladder of one launch: loads around the knee, the asked one deciding, and when the rest is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from models.config import ServerConfig
from models.serving.estimate import Context
from models.workload import Slo, Workload
from planner.sglang.resolver import resolve
from tuner.choices import Objective
from tuner.run.load_ladder import LoadLadder, decision_of, knee_steps
from tuner.seam import Measurement, ServerInfo, Verdict
from tuner.search.objective import Goal

MakeContext = Callable[..., Context]
WORKLOAD = Workload.checked(500, 500, 64)


@dataclass
class Fake:
    """A server whose TPOT grows with the square root of its clients."""

    tpot_ms: float = 2.0
    bad: set[int] = field(default_factory=set)
    asked: list[float] = field(default_factory=list)

    def info(self) -> ServerInfo:
        return ServerInfo(kv_tokens=1, boot_s=0.0)

    def stop(self) -> None: ...

    def measure(self, workload: Workload) -> Measurement:
        clients = workload.concurrency
        self.asked.append(workload.request_rate or clients)
        tpot_ms = self.tpot_ms * math.sqrt(clients)
        by = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), tpot_ms)
        rate = 1e3 * clients / tpot_ms
        usable = clients not in self.bad
        return Measurement(
            concurrency=clients, achieved_in_flight=clients, output_tok_s=rate, output_tok_s_interval=(rate, rate),
            ttft_ms=by, tpot_ms=by, e2e_ms=by, duration_s=1.0, request_rate=workload.request_rate,
            goodput_req_s=workload.request_rate, verdict=Verdict.OK if usable else Verdict.UNSTEADY,
        )  # fmt: skip


@pytest.fixture
def where(context: MakeContext) -> Context:
    return context()


def config(where: Context) -> ServerConfig:
    typed = ServerConfig(tp_size=8, mem_fraction_static=0.85)
    return resolve(typed, where.arch, where.machine, where.version).config


def climb(
    where: Context, server: Fake, goal: Goal, to_beat: float | None, users: float = 20
) -> tuple[str, list[float]]:
    points: list[Measurement] = []
    said = LoadLadder(goal=goal, workload=WORKLOAD, to_beat=to_beat).up(
        server, config(where), where, users, points.append
    )
    return said, [point.load for point in points]


def test_rungs_lie_at_the_knee_and_on_a_scale_that_all_trials_share(where: Context) -> None:
    steps = knee_steps(config(where), where, WORKLOAD)
    assert 1 <= len(steps) <= 2
    assert all(1 <= step <= 6 for step in steps)
    assert knee_steps(config(where), where, replace(WORKLOAD, concurrency=1)) == []


def test_the_baseline_climbs_in_full_upwards(where: Context) -> None:
    said, loads = climb(where, Fake(), Goal(), None)
    assert said == ""
    assert loads == sorted(loads)
    assert loads[-1] == 64
    assert len(loads) == 3


def test_the_asked_load_comes_first_and_ends_what_cannot_win(where: Context) -> None:
    said, loads = climb(where, Fake(), Goal(), math.log(1e6))
    assert loads == [64]
    assert "of the best at 64 clients" in said
    said, loads = climb(where, Fake(), Goal(), math.log(1.0))
    assert said == ""
    assert (loads[0], len(loads)) == (64, 3)


def test_a_limit_missed_beyond_doubt_ends_the_climb_a_near_miss_does_not(where: Context) -> None:
    tpot = 2.0 * math.sqrt(64)
    far = Goal(slos=(Slo.parse(f"tpot:mean<{tpot / 2:.3f}ms"),))
    said, loads = climb(where, Fake(), far, math.log(1.0))
    assert loads == [64]
    assert "a limit is missed by 100 %" in said
    near = Goal(slos=(Slo.parse(f"tpot:mean<{tpot / 1.02:.3f}ms"),))
    said, loads = climb(where, Fake(), near, math.log(1.0))
    assert said == ""
    assert len(loads) == 3


def test_a_point_nobody_may_use_is_measured_once_more(where: Context) -> None:
    server = Fake(bad={64})
    climb(where, server, Goal(), None)
    assert server.asked.count(64) == 2


def test_users_are_closed_in_on_from_both_sides(where: Context) -> None:
    goal = Goal(objective=Objective.USERS, min_user_tok_s=100.0)  # 10 ms: 25 clients at 2 ms x sqrt(clients)
    for guess in (3.0, 25.0, 60.0):
        points: list[Measurement] = []
        climbing = LoadLadder(goal=goal, workload=WORKLOAD)
        assert climbing.up(Fake(), config(where), where, guess, points.append) == ""
        assert goal.value(config(where), points, decision_of(goal, points)) == pytest.approx(25.0, rel=0.05)
        assert decision_of(goal, points).concurrency <= 25
    said, loads = climb(where, Fake(), goal, math.log(60.0))
    assert loads == [60.0]
    assert "does not carry the 60 users of the best" in said


def test_an_open_loop_climbs_to_its_rate(where: Context) -> None:
    goal = Goal(objective=Objective.GOODPUT, request_rate=8.0, slos=(Slo.parse("tpot:mean<1s"),))
    assert climb(where, Fake(), goal, None)[1] == [2.0, 4.0, 8.0]
