"""The last launches of a run: the best again, and the baseline again, because one measurement may be lucky.

The scatter between launches of one configuration is pooled over all that were launched twice. Configurations within
noise of the best (one standard error of the difference, and at least the measurements' own intervals) are tied: the one
that is fastest per user wins; among equals, the one nearest SGLang's default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.seam import Measurement, Verdict

BASELINE = "SGLang default"
RECIPE = "recipe"
# Student's t at 97.5 % by degrees of freedom; few launches are ever repeated.
STUDENT_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One configuration with every launch that measured it.

    `output_tok_s` is the geometric mean over its launches, `interval` its 95 % interval; `value` and `value_interval`
    the same of the objective in its unit; `objective` is the mean score.
    """

    first: TrialRecord
    launches: tuple[TrialRecord, ...]
    output_tok_s: float
    interval: tuple[float, float]
    objective: float
    scatter: Scatter
    value: float
    value_interval: tuple[float, float]

    def rate_at(self, load: float) -> tuple[float, tuple[float, float]] | None:
        """Return the rate of a load of the ladder over all launches with its 95 % interval; None if never sound."""
        points = [point for launch in self.launches for point in launch.points if point.load == load]
        sound = [point for point in points if point.verdict is Verdict.OK]
        return _over(sound, self.scatter) if sound else None

    @property
    def user_tok_s(self) -> float:
        """Speed a user sees while being served, over all launches."""
        return _geometric_mean([_target(launch).user_tok_s for launch in self.launches])

    @property
    def own_half(self) -> float:
        """Half the 95 % interval that the measurements state of themselves, in log units."""
        halves = [_own_half(_target(launch)) for launch in self.launches]
        return sum(halves) / len(halves) / math.sqrt(len(halves))

    def gain_over(self, other: Standing) -> float:
        """How much better than another in the objective, less one: a TPOT of half is a gain of 1."""
        return math.expm1(self.objective - other.objective)

    @property
    def feasible(self) -> bool:
        """Whether every limit is kept on average over the launches."""
        return all(sum(launch.constraints[name] for launch in self.launches) <= 0.0 for name in self.first.constraints)

    @property
    def drift(self) -> float | None:
        """The last launch's rate over the first's, less one; None for a single launch."""
        if len(self.launches) < 2:
            return None
        return _rate(self.launches[-1]) / _rate(self.launches[0]) - 1.0


@dataclass(frozen=True, slots=True)
class Scatter:
    """Standard deviation of the score (a logarithm) between launches of one configuration; unknown with 0 degrees."""

    deviation: float
    degrees: int

    @property
    def student_t(self) -> float:
        return STUDENT_T_95[min(self.degrees, len(STUDENT_T_95)) - 1]


def to_confirm(records: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Return the `count` best feasible trials and, where there are any, the baseline; none launched again already."""
    again = {record.repeats for record in records}
    feasible = sorted((r for r in records if r.feasible and r.repeats is None), key=lambda r: -r.objective)
    best = feasible[:count]
    if not best:
        return []
    best += [r for r in records if r.source == BASELINE and r.target is not None and r not in best]
    return [record for record in best if record.number not in again]


def standings(records: Sequence[TrialRecord]) -> list[Standing]:
    """Return every measured configuration with all its launches, in order of its first."""
    groups = _groups(records)
    scatter = scatter_of(groups)
    return [_standing(group, scatter) for group in groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The configuration to recommend, and the others that the launches cannot tell from the best."""

    winner: Standing
    tied: tuple[Standing, ...] = ()


def winner_of(records: Sequence[TrialRecord]) -> Standing | None:
    """Return the configuration to recommend, None where no trial is feasible."""
    decided = decide(records)
    return None if decided is None else decided.winner


def decide(records: Sequence[TrialRecord]) -> Decision | None:
    """Return the configuration to recommend and its ties, None where no trial is feasible.

    Those launched twice go before all others; without any, the best first launch wins, without ties.
    """
    best = best_of(records)
    if best is None:
        return None
    feasible = [standing for standing in standings(records) if standing.feasible]
    if not feasible:  # the second launch missed a limit that the first had kept
        return None
    confirmed = [standing for standing in feasible if len(standing.launches) > 1]
    if not confirmed:
        return Decision(winner=next(standing for standing in feasible if standing.first.number == best.number))
    leader = max(confirmed, key=lambda standing: standing.objective)
    deviation = scatter_of(_groups(records)).deviation
    default = next((r.params for r in records if r.source == BASELINE), leader.first.params)
    tied = [s for s in confirmed if leader.objective - s.objective <= _noise(leader, s, deviation)]
    fastest = max(tied, key=lambda standing: standing.user_tok_s)
    alike = [s for s in tied if math.log(fastest.user_tok_s / s.user_tok_s) <= _noise(fastest, s, deviation)]
    winner = min(alike, key=lambda s: (_distance(s.first, default), -s.objective))
    return Decision(winner=winner, tied=tuple(s for s in tied if s is not winner))


def named(records: Sequence[TrialRecord], source: str) -> Standing | None:
    """Return SGLang's defaults (BASELINE) or attention DP on all GPUs (RECIPE) with all launches, if measured."""
    return next((s for s in standings(records) if s.first.source == source and s.first.target), None)


def scatter_of(groups: Sequence[Sequence[TrialRecord]]) -> Scatter:
    """Return the pooled deviation between launches of one configuration."""
    squares, degrees = 0.0, 0
    for group in groups:
        scores = [record.objective for record in group]
        middle = sum(scores) / len(scores)
        squares += sum((score - middle) ** 2 for score in scores)
        degrees += len(scores) - 1
    return Scatter(math.sqrt(squares / degrees) if degrees else 0.0, degrees)


def _groups(records: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    groups: dict[int, list[TrialRecord]] = {}
    for record in records:
        if record.outcome is TrialOutcome.MEASURED:
            groups.setdefault(record.number if record.repeats is None else record.repeats, []).append(record)
    return list(groups.values())


def _standing(group: Sequence[TrialRecord], scatter: Scatter) -> Standing:
    points = [_target(record) for record in group]
    rate, interval = _over(points, scatter)
    value = _geometric_mean([_rate(record) if record.value is None else record.value for record in group])
    half = _half_width(points, scatter)
    return Standing(
        first=group[0],
        launches=tuple(group),
        output_tok_s=rate,
        interval=interval,
        objective=sum(record.objective for record in group) / len(group),
        scatter=scatter,
        value=value,
        value_interval=(value * math.exp(-half), value * math.exp(half)),
    )


def _over(points: Sequence[Measurement], scatter: Scatter) -> tuple[float, tuple[float, float]]:
    """Return the geometric mean of one rate over launches, and its interval."""
    middle = _geometric_mean([point.output_tok_s for point in points])
    half = _half_width(points, scatter)
    return middle, (middle * math.exp(-half), middle * math.exp(half))


def _half_width(points: Sequence[Measurement], scatter: Scatter) -> float:
    """Half the 95 % interval of a mean over launches, in log units: by the scatter of launches, if known."""
    root = math.sqrt(len(points))
    own = sum(_own_half(point) for point in points) / len(points) / root
    return max(own, scatter.student_t * scatter.deviation / root if scatter.degrees else 0.0)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-9)) for value in values) / len(values))


def _target(record: TrialRecord) -> Measurement:
    return record.target or record.points[-1]


def _rate(record: TrialRecord) -> float:
    return max(_target(record).output_tok_s, 1e-9)


def _own_half(point: Measurement) -> float:
    """Half the interval that one launch's measurement states of itself, in log units."""
    low, high = point.output_tok_s_interval
    return math.log(high / low) / 2.0 if 0.0 < low < high else 0.0


def _noise(a: Standing, b: Standing, deviation: float) -> float:
    """The largest difference of two configurations, in log units, that proves neither better."""
    error = deviation * math.sqrt(1.0 / len(a.launches) + 1.0 / len(b.launches))
    return max(error, math.hypot(a.own_half, b.own_half))


def _distance(record: TrialRecord, default: dict[str, object]) -> int:
    return sum(record.params.get(name, value) != value for name, value in default.items())
