"""Weights of hypotheses: how well the model, within its bands, predicts the measured figures under each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwprobe.errors import InputError
from models.engine.tuned import TUNED_ROWS, UNTUNED_ROWS
from models.records.case import Case, CasePrediction, predict_case
from models.records.points import Point
from models.serving.uncertainty import Errors
from planner.explain.hypotheses import Hypothesis, hypotheses
from planner.point_case import case_of

# Share of a band's variance common to all figures of a table: they share one engine's error.
COMMON_SHARE = 0.5
# Error of a published figure by rounding and copying, in addition to the model's.
RETOLD = 0.05
# Scatter of a TTFT whose flags are unknown: polling intervals, chunks, clients.
OPEN_TTFT = 0.8
# Weights below this share of the best are not shown.
NEGLIGIBLE = 1e-4
# Hypotheses are first weighed by the figures that cost little to predict; those this far behind (log) are dropped.
FAR_BEHIND = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure beside its prediction: log(measured / predicted), and one standard deviation of that."""

    id: str
    metric: str
    measured: float
    predicted: float
    deviation: float

    @property
    def log_ratio(self) -> float:
        return math.log(self.measured / self.predicted)

    @property
    def percent(self) -> float:
        """Measured over predicted, in percent."""
        return 100.0 * math.expm1(self.log_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A hypothesis with its posterior weight and its prediction of every figure."""

    hypothesis: Hypothesis
    weight: float
    log_likelihood: float
    figures: tuple[Figure, ...]

    @property
    def residuals(self) -> dict[str, float]:
        """Measured over predicted in percent by record: the largest of each record."""
        furthest: dict[str, float] = {}
        for figure in self.figures:
            if abs(figure.percent) >= abs(furthest.get(figure.id, 0.0)):
                furthest[figure.id] = figure.percent
        return furthest


def explain(points: Sequence[Point]) -> list[Explanation]:
    """Return the hypotheses that explain the records, best first; weights sum to 1.

    Raises InputError where no record has a figure, or the model can predict none of the hypotheses.
    """
    measured = [point for point in points if point.measured or point.extra.get("total_tok_s")]
    if not measured:
        raise InputError("no record has a measured ttft, tpot, output_tok_s or total_tok_s: nothing to explain")
    cheap_first = sorted(measured, key=lambda point: point.concurrency or 1.0)
    weighed: list[tuple[float, Hypothesis, tuple[Figure, ...]]] = []
    best = -math.inf
    failed: InputError | None = None
    for hypothesis in hypotheses(measured):
        try:
            scored = _weigh(cheap_first, hypothesis, best)
        except InputError as error:
            failed = error
            continue
        if scored is not None:
            weighed.append((scored[0], hypothesis, scored[1]))
            best = max(best, scored[0])
    if not weighed:
        raise failed or InputError("no hypothesis about these records can be predicted")
    weights = np.exp(np.array([score for score, _, _ in weighed]) - best)
    weights /= weights.sum()
    explained = [
        Explanation(hypothesis=h, weight=float(w), log_likelihood=score, figures=figures)
        for w, (score, h, figures) in zip(weights, weighed, strict=True)
    ]
    return sorted(explained, key=lambda each: -each.weight)


def _weigh(points: Sequence[Point], hypothesis: Hypothesis, best: float) -> tuple[float, tuple[Figure, ...]] | None:
    """Return prior and likelihood (log) with the figures; None where the first figures already rule it out."""
    figures: list[Figure] = []
    score = -math.inf
    for point in points:
        figures += _figures(point, hypothesis)
        score = math.log(hypothesis.prior) + log_likelihood(figures)
        if score < best - FAR_BEHIND:
            return None
    return score, tuple(figures)


def _figures(point: Point, hypothesis: Hypothesis) -> Iterator[Figure]:
    case = _case(point, hypothesis)
    predicted, errors = predict_case(case)
    for metric, measured, value, deviation in _pairs(point, hypothesis, case, predicted, errors):
        yield Figure(
            id=point.id, metric=metric, measured=measured, predicted=value,
            deviation=math.hypot(deviation, RETOLD),
        )  # fmt: skip


def _case(point: Point, hypothesis: Hypothesis) -> Case:
    """Return the case of a completed record, with the kernels of the hypothesis."""
    case = case_of(hypothesis.complete(point))
    rows = TUNED_ROWS if hypothesis.kernels == "tuned" else UNTUNED_ROWS
    return replace(case, context=replace(case.context, moe_rows=rows))


def _pairs(
    point: Point, hypothesis: Hypothesis, case: Case, predicted: CasePrediction, errors: Errors
) -> Iterator[tuple[str, float, float, float]]:
    """Yield metric, measured, predicted and deviation: one latency of each kind, and a throughput if there is one.

    A throughput that follows from the latency (single speeds times users) is not independent evidence.
    """
    ttft = errors.ttft if point.launch_args else math.hypot(errors.ttft, OPEN_TTFT)
    for kind, deviation in (("tpot", errors.tpot), ("ttft", ttft)):
        for metric in (f"{kind}_median_ms", f"{kind}_mean_ms"):
            measured, value = case.measured.get(metric), predicted.figure(metric)
            if measured and value:
                yield metric, measured, value, deviation
                break
    derived = "output_tok_s=users*per-user" in (point.extra.get("derived_fields") or ())
    if point.output_tok_s and not (derived and point.tpot_mean_ms):
        yield "output_tok_s", point.output_tok_s, predicted.output_tok_s, errors.output_tok_s
    total = point.extra.get("total_tok_s")
    if total and not point.output_tok_s:
        run = case.run
        both = 1.0 + run.isl.mean / run.osl.mean
        value = predicted.output_tok_s * (both if hypothesis.reading == "total" else 1.0)
        yield "total_tok_s", float(total), value, errors.output_tok_s


def log_likelihood(figures: Sequence[Figure]) -> float:
    """Return the log-density of the figures: log-normal, with one common error."""
    ratios = np.array([figure.log_ratio for figure in figures])
    signs = np.array([1.0 if figure.metric.endswith("_ms") else -1.0 for figure in figures])  # slow: late, and few
    deviations = np.array([figure.deviation for figure in figures])
    common = np.sqrt(COMMON_SHARE) * signs * deviations
    covariance = np.diag((1.0 - COMMON_SHARE) * deviations**2) + np.outer(common, common)
    _, determinant = np.linalg.slogdet(covariance)
    return float(-0.5 * (ratios @ np.linalg.solve(covariance, ratios) + determinant))
