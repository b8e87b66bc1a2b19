"""Validation: predictions against measurements, by version and workload."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from models.records.case import Case, CasePrediction
from models.records.points import METRICS
from models.serving.uncertainty import BAND_SIGMAS, Errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One measured figure and its prediction. `fitted`: the profile was fitted to this very point."""

    id: str
    group: str
    concurrency: int
    metric: str
    measured: float
    predicted: float
    in_band: bool
    fitted: bool

    @property
    def percent(self) -> float:
        """Measured over predicted, in percent."""
        return 100.0 * (self.measured / self.predicted - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Errors of one group, measured over predicted in percent: mean absolute, largest absolute, mean.

    `in_band` is the share in the 90 % band.
    """

    group: str
    concurrency: str
    metric: str
    count: int
    mape: float
    largest: float
    bias: float
    in_band: float
    kind: str


def residuals_of(case: Case, predicted: CasePrediction, errors: Errors) -> list[Residual]:
    """Return the residual of every figure that was measured."""
    sigma = {"ttft": errors.ttft, "tpot": errors.tpot, "output": errors.output_tok_s}
    residuals = []
    for metric in METRICS:
        measured, figure = case.measured.get(metric), predicted.figure(metric)
        if measured is None or figure is None or figure <= 0:
            continue
        away = abs(math.log(figure / measured))
        residuals.append(
            Residual(
                id=case.id,
                group=_group(case),
                concurrency=case.run.concurrency,
                metric=metric,
                measured=measured,
                predicted=figure,
                in_band=away <= BAND_SIGMAS * sigma[metric.split("_")[0]],
                fitted=case.id in case.context.engine.fitted_to,
            )
        )
    return residuals


def scores(residuals: Sequence[Residual], *, by_concurrency: bool = False) -> list[Score]:
    """Summarise residuals by group and metric (and concurrency), in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Residual]] = defaultdict(list)
    for residual in residuals:
        clients = str(residual.concurrency) if by_concurrency else "all"
        groups[(residual.group, clients, residual.metric)].append(residual)
    return [_score(*key, members) for key, members in groups.items()]


def overall(residuals: Sequence[Residual]) -> list[Score]:
    """Summarise all residuals by metric."""
    return [
        _score("all", "all", metric, [r for r in residuals if r.metric == metric])
        for metric in METRICS
        if any(r.metric == metric for r in residuals)
    ]


def _score(group: str, clients: str, metric: str, members: list[Residual]) -> Score:
    errors = [residual.percent for residual in members]
    return Score(
        group=group,
        concurrency=clients,
        metric=metric,
        count=len(members),
        mape=sum(map(abs, errors)) / len(errors),
        largest=max(errors, key=abs),
        bias=sum(errors) / len(errors),
        in_band=100.0 * sum(residual.in_band for residual in members) / len(members),
        kind=_kind([residual.fitted for residual in members]),
    )


def _kind(fitted: list[bool]) -> str:
    """Name what a score is: `fitted` says nothing about unseen data, `prediction` does."""
    return "fitted" if all(fitted) else "mixed" if any(fitted) else "prediction"


def _group(case: Case) -> str:
    """What belongs together: version, machine, layout, kind and lengths."""
    run = case.run
    if run.kind == "decode_step":
        shape = "decode step"
    else:
        shape = f"{run.isl.nominal:,}/{run.osl.nominal:,}" + ("" if run.kind == "serving" else f" {run.kind}")
    servers = case.config.label
    if case.prefill is not None:
        servers = f"{case.prefill.servers}P {case.prefill.config.label} + {case.servers}D {servers}"
    return f"{case.context.version} {case.context.machine.name} {servers} {shape}"
