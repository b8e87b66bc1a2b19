"""Closed forms of every figure a run may look at, for many configurations at once: logarithms, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from models.layout import Array
from models.serving.closed_form import ClosedForm, Demand, closed_loop
from models.workload import ALL_AT_ONCE, Slo
from tuner.choices import Objective
from tuner.search.expected_improvement import chance_below
from tuner.search.objective import LEAST_SHARE, Goal, crossing

if TYPE_CHECKING:
    from tuner.search.configurations import Candidates

# Log of a figure of every row, when the machine departs from the belief by so much.
Figure = Callable[["Candidates", Array], Array]
# Concurrencies at which a curve is evaluated to find where it crosses a limit.
CURVE_POINTS = 20
# How far single requests scatter around the mean, in log units, by what is limited.
REQUEST_SPREAD = {"ttft": 0.6, "tpot": 0.12, "e2e": 0.2}
# An open loop beyond capacity queues: seconds of arrivals that a measurement sees pile up.
OPEN_LOOP_S = 30.0


def log_figure(steady: ClosedForm, metric: str) -> Array:
    """Return the natural logarithm of a figure of the closed form: output_tok_s, or tpot, ttft, e2e in ms."""
    values = {
        "output_tok_s": steady.output_tok_s,
        "tpot": steady.tpot_s * 1e3,
        "ttft": steady.ttft_s * 1e3,
        "e2e": steady.e2e_s * 1e3,
    }[metric]
    logarithms: Array = np.log(np.maximum(values, 1e-9))
    return logarithms


def of_point(metric: str) -> Figure:
    """Return the figure of the asked concurrency: output_tok_s, tpot, ttft or e2e."""

    def figure(rows: Candidates, parameter_shift_sigmas: Array) -> Array:
        return log_figure(rows.steady(parameter_shift_sigmas), metric)

    return figure


def of_goal(goal: Goal) -> Figure:
    """Return the figure that a goal is about (not shifted, not signed)."""
    if goal.objective is Objective.USERS:
        return lambda rows, parameter_shift_sigmas: _users(rows, parameter_shift_sigmas, goal.limits)
    if goal.objective is Objective.GOODPUT:
        return lambda rows, parameter_shift_sigmas: _goodput(
            rows, parameter_shift_sigmas, float(goal.request_rate or 0.0), goal.slos
        )
    return of_point("tpot" if goal.objective is Objective.TPOT else "output_tok_s")


def _curve(rows: Candidates, parameter_shift_sigmas: Array) -> tuple[Array, ClosedForm]:
    """Return concurrencies up to the asked one, and the steady state of every row at each (rows x clients)."""
    most = max(2, rows.space.workload.concurrency)
    clients = np.unique(np.geomspace(1, most, CURVE_POINTS).round())
    context = rows.departed(parameter_shift_sigmas)
    workload = rows.space.workload
    demand = Demand(isl=workload.isl.mean, osl=workload.osl.mean, concurrency=clients, acceptance=context.acceptance)
    table = rows.table.column()
    return clients, closed_loop(context.system(table), demand, rows.memory.kv_tokens.reshape(-1, 1))


def _users(rows: Candidates, parameter_shift_sigmas: Array, limits: tuple[Slo, ...]) -> Array:
    """Log of the most clients that all run at once and see every mean limit kept."""
    clients, steady = _curve(rows, parameter_shift_sigmas)
    excess = np.log(np.maximum(ALL_AT_ONCE * clients / steady.running, 1e-9))
    for slo in limits:
        excess = np.maximum(excess, log_figure(steady, str(slo.metric)) - math.log(slo.limit_ms))
    return crossing(np.log(clients), excess)


def _goodput(rows: Candidates, parameter_shift_sigmas: Array, rate: float, slos: tuple[Slo, ...]) -> Array:
    """Log of the requests per second within every limit, when `rate` of them come: Little's law on the curve."""
    clients, steady = _curve(rows, parameter_shift_sigmas)
    served = np.maximum.accumulate(steady.request_rate, axis=1)
    capacity = served[:, -1]
    at = crossing(np.log(clients), np.log(served / rate))
    share = np.ones(len(at))
    piled_ms = np.maximum(0.0, rate / capacity - 1.0) * OPEN_LOOP_S / 2.0 * 1e3
    for slo in slos:
        name = str(slo.metric)
        curve = log_figure(steady, name)
        middle = np.array([np.interp(x, np.log(clients), row) for x, row in zip(at, curve, strict=True)])
        if name != "tpot":
            middle = np.log(np.exp(middle) + piled_ms)
        z = (math.log(slo.limit_ms) - middle) / REQUEST_SPREAD[name]
        share = share * chance_below(z)
    logarithms: Array = np.log(np.maximum(np.minimum(rate, capacity) * share, LEAST_SHARE * rate))
    return logarithms
