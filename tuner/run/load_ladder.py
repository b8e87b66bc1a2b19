"""The ladder of one launch: which loads are measured, in which order, and when the rest is not worth its time.

A boot costs minutes, so every launch yields a curve. Rungs lie around the predicted knee, on a scale that trials share
(the asked load halved again and again), so that their curves can be compared. Where nothing has to be shown in full
the asked load comes first: it decides, and a ladder that cannot win ends there. The baseline and launches that confirm
climb in full, upwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.config import ServerConfig
from models.layout import table_of
from models.serving.closed_form import closed_loop
from models.serving.estimate import Context, demand_of
from models.traffic.traced_workload import TracedWorkload
from models.workload import Workload
from tuner.choices import Objective
from tuner.seam import Measurement, Server, Verdict
from tuner.search.objective import ELASTICITY, Goal

# The loads of an open loop, as shares of the asked rate.
RATE_SHARES = (0.25, 0.5, 1.0)
# Rungs beside the asked one.
LOWER_RUNGS = 2
# Behind the best, or beyond a limit, by more than this (log units), no repeat of the measurement would help.
BEYOND_DOUBT = 0.10
# The search for users: least and largest step between two loads, how near to either side of a bracket the next may
# lie (share of it), how near the last two are, how many at most.
STEP = 1.05
LARGEST_STEP = 8.0
MARGIN = 0.15
RESOLUTION = 1.08
MOST_RUNGS = 6

Keep = Callable[[Measurement], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLadder:
    """What a launch is to show: the asked load and some below, the goal, the score to beat (None: climb in full)."""

    goal: Goal
    workload: Workload
    to_beat: float | None = None
    lower_rungs: int = LOWER_RUNGS

    def up(self, server: Server, config: ServerConfig, context: Context, users: float, keep: Keep) -> str:
        """Measure the loads, handing each over as it comes; return why the climb ended early, empty where it did not.

        `users` is what the closed form says the configuration carries; only the search for users looks at it.
        """
        if self.goal.objective is Objective.USERS:
            return self._towards_users(server, config, users, keep)
        loads = self.loads(config, context)
        if self.to_beat is None:
            for workload in loads:
                keep(_measured(server, workload))
            return ""
        for workload in reversed(loads):
            point = _measured(server, workload)
            keep(point)
            why = self._lost(config, point) if workload is loads[-1] else ""
            if why and len(loads) > 1:
                return why
        return ""

    def loads(self, config: ServerConfig, context: Context) -> list[Workload]:
        """Return the loads to measure, the asked one last; of a trace there is but the one."""
        if isinstance(self.workload, TracedWorkload):
            return [self.workload]
        if self.goal.objective is Objective.GOODPUT:
            rate, clients_asked = float(self.goal.request_rate or 0.0), self.workload.concurrency
            return [
                replace(self.workload, request_rate=rate * share, concurrency=max(1, round(clients_asked * share)))
                for share in RATE_SHARES
            ]
        clients_asked = self.workload.concurrency
        steps = knee_steps(config, context, self.workload)[: self.lower_rungs]
        lower = {clients_asked >> step for step in steps if clients_asked >> step >= 1}
        return [replace(self.workload, concurrency=clients) for clients in sorted(lower | {clients_asked})]

    def _lost(self, config: ServerConfig, point: Measurement) -> str:
        """Say why the other loads could not make this configuration the best, or nothing."""
        if point.verdict is not Verdict.OK or self.to_beat is None:
            return ""
        over = max((slo.excess(point) for slo in self.goal.constraining), default=-math.inf)
        at = load_of(point)
        if over > BEYOND_DOUBT:
            return f"a limit is missed by {100 * math.expm1(over):.0f} % at {at}: the other loads were not measured"
        behind = self.to_beat - self.goal.score(self.goal.value(config, [point], point))
        if behind > BEYOND_DOUBT:
            return f"{100 * math.expm1(-behind):+.0f} % of the best at {at}: the other loads were not measured"
        return ""

    def _towards_users(self, server: Server, config: ServerConfig, users: float, keep: Keep) -> str:
        """Measure loads until one keeps the limits, one does not, and they are near each other."""
        most = self.workload.concurrency
        target = None if self.to_beat is None else max(1, min(most, round(math.exp(self.to_beat))))
        clients = max(1, min(most, round(users))) if target is None else target
        good = bad = None
        for _ in range(MOST_RUNGS):
            point = _measured(server, replace(self.workload, concurrency=clients))
            keep(point)
            over = self.goal.worst_excess(point) if point.verdict is Verdict.OK else math.inf
            if over > 0.0:
                bad = Tried(clients, over)
            else:
                good = Tried(clients, over)
            if clients == target and over > BEYOND_DOUBT:
                return f"it does not carry the {clients:,} users of the best: no fewer were tried"
            following = next_load(good, bad, most)
            if following is None:
                return ""
            clients = following
        return ""


@dataclass(frozen=True, slots=True)
class Tried:
    """A number of users, and log(latency / limit) of the limit missed most or kept by least."""

    clients: int
    excess: float


def next_load(good: Tried | None, bad: Tried | None, most: int) -> int | None:
    """Return the next number of users to try, None when the answer is known well enough.

    Aims where the measured curve crosses the limit, a little to the side that is still open.
    """
    if good is not None and bad is not None:
        if bad.clients - good.clients <= 1 or bad.clients / good.clients <= RESOLUTION:
            return None
        share = -good.excess / (bad.excess - good.excess) if math.isfinite(bad.excess) else 0.5
        ratio = bad.clients / good.clients
        aim = float(good.clients * ratio ** min(max(share, MARGIN), 1.0 - MARGIN))
        return min(bad.clients - 1, max(good.clients + 1, round(aim)))
    if good is not None:
        step = min(LARGEST_STEP, max(STEP, STEP * math.exp(-good.excess / ELASTICITY)))
        return None if good.clients >= most else min(most, max(good.clients + 1, round(good.clients * step)))
    if bad is None or bad.clients <= 1:
        return None
    step = min(LARGEST_STEP, max(STEP, STEP * math.exp(min(bad.excess, 10.0) / ELASTICITY)))
    return max(1, min(bad.clients - 1, round(bad.clients / step)))


def knee_steps(config: ServerConfig, context: Context, workload: Workload) -> list[int]:
    """Return how often the asked concurrency is halved for the loads below it: one at the predicted knee, one beside.

    The knee is where throughput x speed per user is largest (Kleinrock's power): below it a request waits for little
    but itself, beyond it each client is paid for by the others.
    """
    clients_asked = workload.concurrency
    deepest = int(math.log2(clients_asked)) if clients_asked > 1 else 0
    steps = np.arange(deepest + 1)
    clients = np.maximum(1.0, np.floor(clients_asked / 2.0**steps))
    table = table_of([config])
    demand = replace(demand_of(context, workload), concurrency=clients)
    steady = closed_loop(context.system(table.column()), demand, context.memory(table).kv_tokens.reshape(-1, 1))
    power = (steady.output_tok_s / steady.e2e_s)[0]
    knee = int(np.argmax(power))
    beside = knee // 2 if knee >= 2 else knee + 2
    return sorted({min(deepest, step) for step in (max(1, knee), max(1, beside))} - {0})


def _measured(server: Server, workload: Workload) -> Measurement:
    """Measure a load; an invalid point is measured once more on the same server."""
    point = server.measure(workload)
    return point if point.verdict is Verdict.OK else server.measure(workload)


def load_of(point: Measurement) -> str:
    """Return the load of a point in words."""
    if point.request_rate is not None:
        return f"{point.request_rate:g} requests/s"
    return f"{point.concurrency:,} clients"


def decision_of(goal: Goal, points: Sequence[Measurement]) -> Measurement:
    """Return the point that decides: the largest load, or of a search for users the largest that keeps the limits."""
    ordered = sorted(points, key=lambda point: point.load)
    if goal.objective is not Objective.USERS:
        return ordered[-1]
    within_limits = [p for p in ordered if p.verdict is Verdict.OK and goal.worst_excess(p) <= 0.0]
    usable = [p for p in ordered if p.verdict is Verdict.OK] or ordered
    return within_limits[-1] if within_limits else usable[0]
