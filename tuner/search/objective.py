"""The objective of a run, its unit, and the limits a feasible configuration must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprobe.bounds import REQUESTS, within
from hwprobe.errors import InputError
from models.config import ServerConfig
from models.layout import Array
from models.workload import Latencies, Metric, Slo, Statistic
from tuner.choices import Objective
from tuner.seam import Measurement, Verdict

# Latency grows about with the square root of the clients where a server is well used; taken where no second point
# shows how it grows (users between one client and the first load).
ELASTICITY = 0.5
# A share of the requests, or of the rate, below which nothing useful is left to compare.
LEAST_SHARE = 1e-3
UNITS = {
    Objective.OUTPUT_TOK_S: "output tok/s",
    Objective.OUTPUT_TOK_S_PER_GPU: "output tok/s per GPU",
    Objective.OUTPUT_TOK_S_PER_COST: "output tokens per unit of cost",
    Objective.TPOT: "ms per output token",
    Objective.USERS: "users",
    Objective.GOODPUT: "requests/s within every limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The objective with its own figures.

    `min_user_tok_s` belongs to `users`, `request_rate` (1/s) to `goodput`, `cost_per_gpu_hour` (any currency) to
    `output_tok_s_per_cost`. `most_users` bounds the search for users.
    """

    objective: Objective = Objective.OUTPUT_TOK_S
    slos: tuple[Slo, ...] = ()
    min_user_tok_s: float | None = None
    request_rate: float | None = None
    cost_per_gpu_hour: float | None = None

    def checked(self) -> Goal:
        """Raise InputError where a figure is missing, or belongs to another objective; return the goal otherwise."""
        needed = {
            Objective.USERS: ("--min-user-tok-s", self.min_user_tok_s),
            Objective.GOODPUT: ("--request-rate", self.request_rate),
            Objective.OUTPUT_TOK_S_PER_COST: ("--cost-per-gpu-hour", self.cost_per_gpu_hour),
        }
        for objective, (flag, value) in needed.items():
            if objective is self.objective and value is None:
                raise InputError(f"--objective {objective} needs {flag}")
            if objective is not self.objective and value is not None:
                raise InputError(f"{flag} belongs to --objective {objective}; the objective is {self.objective}")
            if value is not None:
                within(value, flag, REQUESTS[flag[2:].replace("-", "_")])
        if self.objective is Objective.GOODPUT and not self.slos:
            raise InputError("--objective goodput counts the requests that keep every --slo: give at least one")
        return self

    @property
    def limits(self) -> tuple[Slo, ...]:
        """The SLOs, and the speed per user written as one."""
        if self.min_user_tok_s is None:
            return self.slos
        return (*self.slos, Slo(metric=Metric.TPOT, statistic=Statistic.MEAN, limit_ms=1e3 / self.min_user_tok_s))

    @property
    def constraining(self) -> tuple[Slo, ...]:
        """The limits that are constraints of their own: goodput counts the requests that keep them, so it has no such
        constraints.
        """
        return () if self.objective is Objective.GOODPUT else self.limits

    @property
    def unit(self) -> str:
        return UNITS[self.objective]

    @property
    def lower_is_better(self) -> bool:
        return self.objective is Objective.TPOT

    def shift(self, config: ServerConfig) -> float:
        """Return log(value / output tok/s) for the objectives that are a rate per something, 0 otherwise."""
        if self.objective is Objective.OUTPUT_TOK_S_PER_GPU:
            return -math.log(config.gpu_count)
        if self.objective is Objective.OUTPUT_TOK_S_PER_COST:
            return math.log(3600.0 / (config.gpu_count * float(self.cost_per_gpu_hour or 1.0)))
        return 0.0

    def rated(self, config: ServerConfig, output_tok_s: float, tpot_mean_ms: float) -> float:
        """Return the value of an objective that one point decides by its rate or its TPOT."""
        if self.objective is Objective.TPOT:
            return tpot_mean_ms
        return output_tok_s * math.exp(self.shift(config))

    def score(self, value: float) -> float:
        """Return the value as a number to maximise: logarithmic, since ratios matter."""
        score = math.log(max(value, 1e-6))  # a single output token has no TPOT
        return -score if self.lower_is_better else score

    def value(self, config: ServerConfig, points: Sequence[Measurement], decision: Measurement) -> float:
        """Return the objective's value of a measured configuration, in its unit."""
        if self.objective is Objective.USERS:
            return users_within_slo(points, self.limits)
        if self.objective is Objective.GOODPUT:
            return self.goodput(decision.goodput_req_s or 0.0)
        return self.rated(config, decision.output_tok_s, decision.tpot_ms["mean"])

    def goodput(self, requests_s: float) -> float:
        """Return so many requests per second within every limit, or the little that is left to compare of none."""
        return max(requests_s, LEAST_SHARE * float(self.request_rate or 0.0))

    def worst_excess(self, latencies: Latencies) -> float:
        """Return the largest log(latency / limit) over the limits; negative where all are kept."""
        return max((slo.excess(latencies) for slo in self.limits), default=-math.inf)


def users_within_slo(points: Sequence[Measurement], limits: Sequence[Slo]) -> float:
    """Return how many users are carried within the limits: where the measured curve crosses the first limit.

    Between a point that keeps them and one that does not, log(latency) is taken as linear in log(users); below the
    first point it grows as ELASTICITY says; beyond the last it is not extrapolated.
    """
    usable = sorted((p for p in points if p.verdict is Verdict.OK), key=lambda point: point.concurrency)
    clients = np.array([float(point.concurrency) for point in usable])
    excess = np.array([max(slo.excess(point) for slo in limits) for point in usable])
    return float(np.exp(crossing(np.log(clients), excess[None, :])[0])) if len(usable) else 0.0


def crossing(log_clients: Array, excess: Array) -> Array:
    """Return for each row of `excess` (rows x clients) the logarithm of the clients at which it turns positive."""
    broken = excess > 0.0
    first = np.where(broken.any(axis=1), broken.argmax(axis=1), excess.shape[1])
    inside = np.clip(first, 1, excess.shape[1] - 1) if excess.shape[1] > 1 else np.zeros(len(excess), dtype=np.intp)
    rows = np.arange(len(excess))
    before = np.maximum(inside - 1, 0)
    low, high = excess[rows, before], excess[rows, inside]
    share = np.clip(-low / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    within = log_clients[before] + share * (log_clients[inside] - log_clients[before])
    below = log_clients[0] - excess[:, 0] / ELASTICITY
    log_crossing: Array = np.where(first == 0, below, np.where(first == excess.shape[1], log_clients[-1], within))
    return log_crossing
