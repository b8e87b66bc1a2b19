"""Results of a run: a knob's effect between trials that differ in it alone, and the model's errors."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.evidence.trial import TrialOutcome, TrialRecord

LAYOUT = "layout"
MOST_EFFECTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobEffect:
    """A knob turned from `before` to `after` with all else equal.

    `change` is the output rate's relative change by concurrency; `trials` are the two that show it.
    """

    knob: str
    before: str
    after: str
    change: dict[int, float]
    trials: tuple[int, int]

    @property
    def sentence(self) -> str:
        """Return it in words, the highest concurrency first."""
        changes = ", ".join(f"{100 * self.change[c]:+.0f} % at c={c}" for c in sorted(self.change, reverse=True))
        return f"{self.knob} {self.before} -> {self.after}: {changes} (trials {self.trials[0]} and {self.trials[1]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResidual:
    """Measured over predicted objective of a family of configurations, less one, on average over its trials."""

    family: str
    mean: float
    trials: int


def knob_effects(records: Sequence[TrialRecord]) -> list[KnobEffect]:
    """Return the effects that two measured trials show, the MOST_EFFECTS largest; the earlier trial is `before`."""
    effects = (
        KnobEffect(
            knob="parallelism" if knob == LAYOUT else knob,
            before=_value(a, knob),
            after=_value(b, knob),
            change=change,
            trials=(a.number, b.number),
        )
        for knob, a, b in _neighbours(_measured(records))
        if (change := _change(a, b))
    )
    return heapq.nlargest(MOST_EFFECTS, effects, key=lambda effect: max(abs(value) for value in effect.change.values()))


def residuals(records: Sequence[TrialRecord]) -> list[TrialResidual]:
    """Return measured over predicted per family, largest first."""
    families: dict[str, list[float]] = {}
    for record in _measured(records):
        families.setdefault(record.label, []).append(math.log(max(record.over_predicted, 1e-9)))
    by_family = [
        TrialResidual(family=family, mean=math.expm1(sum(logs) / len(logs)), trials=len(logs))
        for family, logs in families.items()
    ]
    return sorted(by_family, key=lambda residual: -abs(residual.mean))


def _measured(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [r for r in records if r.outcome is TrialOutcome.MEASURED and r.repeats is None]


def _neighbours(records: Sequence[TrialRecord]) -> Iterator[tuple[str, TrialRecord, TrialRecord]]:
    """Yield (knob, earlier, later) of every two records that differ in one knob, in the order of the earlier ones.

    Records meet where all their other values are the same: a run of thousands is not compared two by two. Of several
    records of one configuration the first speaks.
    """
    alike: dict[tuple[str, int], list[TrialRecord]] = {}
    pairs = []
    for record in {frozenset(_plain(record.params).items()): record for record in reversed(records)}.values():
        hashes = {knob: hash((knob, value)) for knob, value in _plain(record.params).items()}
        whole = sum(hashes.values())
        for knob, own in hashes.items():
            met = alike.setdefault((knob, whole - own), [])  # a sum of hashes costs less memory than the values
            pairs += [(knob, record, later) for later in met if _only_difference(record.params, later.params) == knob]
            met.append(record)
    yield from sorted(pairs, key=lambda pair: (pair[1].number, pair[2].number))


def _only_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    different = [name for name, value in a.items() if b.get(name) != value]
    return different[0] if len(different) == 1 else None


def _plain(params: dict[str, Any]) -> dict[str, Hashable]:
    """Return parameters as values that can be compared by their hash: a list from a file counts as its text."""
    return {name: value if isinstance(value, Hashable) else repr(value) for name, value in params.items()}


def _value(record: TrialRecord, knob: str) -> str:
    return record.label if knob == LAYOUT else str(record.params[knob])


def _change(a: TrialRecord, b: TrialRecord) -> dict[int, float]:
    before = {point.concurrency: point.output_tok_s for point in a.points}
    return {
        point.concurrency: point.output_tok_s / before[point.concurrency] - 1.0
        for point in b.points
        if before.get(point.concurrency)
    }
