"""What a profile expects of measured points, less what was measured: residuals, and how much each may scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.engine.profile import EngineParameters
from models.layout import Array
from models.records.case import FLEET_ERRORS, TRANSFER_SPEED, Case, CasePrediction, expected

# One standard deviation of a measurement of each figure (repeated sweeps: 1-2 %, 7 % at worst).
SCATTER = {"tpot": 0.02, "output": 0.03, "ttft": 0.12}
# A mean TTFT without its median: a few requests that met a cold server can make all of it.
MEAN_TTFT_SCATTER = 0.25
# SGLang's mean over the requests of one server, of transfers that share adapters.
TRANSFER_SCATTER = 0.15
FLEET_FIGURE = {"tpot": "tpot", "output": "output_tok_s", "ttft": "ttft"}
# A TTFT that is a queue's length says little about the speed of prefill.
QUEUED_SCATTER = 0.6
QUEUED_SHARE = 0.95
# Residuals beyond this many standard deviations count less (Huber).
HUBER = 2.0
FIGURES = {
    "tpot": ("tpot_mean_ms", "tpot_median_ms"),
    "output": ("output_tok_s",),
    "ttft": ("ttft_mean_ms", "ttft_median_ms"),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """Residuals log(expected / measured) at one set of parameters, with the standard deviation of each."""

    residuals: Array
    scatter: Array
    owners: list[str]
    kinds: list[str]

    @property
    def z(self) -> Array:
        return self.residuals / self.scatter

    @property
    def weights(self) -> Array:
        """Huber weights: 1 within HUBER standard deviations, falling beyond."""
        size = np.abs(self.z)
        return np.where(size <= HUBER, 1.0, HUBER / np.maximum(size, 1e-12))

    @property
    def loss(self) -> float:
        """Huber's loss: half the square within HUBER standard deviations, linear beyond."""
        size = np.abs(self.z)
        return float(np.sum(np.where(size <= HUBER, 0.5 * size**2, HUBER * size - 0.5 * HUBER**2)))


def residuals(cases: Sequence[Case], parameters: EngineParameters) -> Fit:
    """Return log(expected / measured) of every figure: one for TPOT, one for output, one for TTFT per case."""
    values, scatter, owners, kinds = [], [], [], []
    answers: dict[tuple[object, ...], CasePrediction] = {}
    for case in cases:
        question = _question(case)
        if question not in answers:  # repeats share one prediction
            answers[question] = expected(case.with_parameters(parameters))
        prediction = answers[question]
        for kind, names in FIGURES.items():
            logs = [
                math.log(figure / case.measured[name])
                for name in names
                if name in case.measured and (figure := prediction.figure(name)) is not None
            ]
            if logs:
                values.append(sum(logs) / len(logs))
                scatter.append(case.doubt * _scatter(case, kind))
                owners.append(case.id)
                kinds.append(kind)
        if case.prefill is not None and TRANSFER_SPEED in case.measured:
            values.append(math.log(parameters.transfer_gb_s / case.measured[TRANSFER_SPEED]))
            scatter.append(case.doubt * TRANSFER_SCATTER)
            owners.append(case.id)
            kinds.append("transfer")
    return Fit(np.array(values), np.array(scatter), owners, kinds)


def _scatter(case: Case, kind: str) -> float:
    """One standard deviation of a case's measured figure; a fleet adds the errors of its own equations."""
    own = _own_scatter(case, kind)
    return own if case.prefill is None else math.hypot(own, FLEET_ERRORS[FLEET_FIGURE[kind]])


def _own_scatter(case: Case, kind: str) -> float:
    if kind == "ttft" and _queues(case):
        return QUEUED_SCATTER
    if kind == "ttft" and case.run.kind == "serving" and "ttft_median_ms" not in case.measured:
        return MEAN_TTFT_SCATTER
    return SCATTER[kind]


def _question(case: Case) -> tuple[object, ...]:
    """Return everything a prediction depends on except the engine's fitted parameters."""
    context = case.context
    return (
        context.arch, context.machine, context.version, context.acceptance, context.sigma, context.independence,
        context.engine.sigma, context.mtp_overlap, context.moe_rows, case.config, case.run, case.kv_tokens,
        case.kv_known, case.servers, _prefill_question(case),
    )  # fmt: skip


def _prefill_question(case: Case) -> tuple[object, ...] | None:
    """Return what an expectation depends on of a fleet's prefill servers."""
    pool = case.prefill
    return None if pool is None else (pool.context.machine, pool.config, pool.servers, pool.kv_tokens)


def _queues(case: Case) -> bool:
    """Whether requests may have waited for room in the KV cache or for their turn."""
    run = case.run
    demand_tokens = run.concurrency * (run.isl.mean + run.osl.mean)
    crowded = demand_tokens > QUEUED_SHARE * case.kv_tokens * case.servers
    crowded = crowded or run.concurrency > case.table.most_running[0] * case.servers
    return bool(crowded or run.request_rate is not None)


def rms_of_prefill(fit: Fit) -> float:
    """Return the root mean square of TTFT's residuals, each by its scatter. 0 of none; a queue's length is none.

    A machine whose points say another TTFT than the profile can give keeps a band that holds them.
    """
    ttft = np.array([kind == "ttft" for kind in fit.kinds], dtype=bool) & (fit.scatter < QUEUED_SCATTER)
    if not ttft.any():
        return 0.0
    weights = (SCATTER["ttft"] / fit.scatter[ttft]) ** 2
    return math.sqrt(float(np.sum(weights * fit.residuals[ttft] ** 2) / np.sum(weights)))
