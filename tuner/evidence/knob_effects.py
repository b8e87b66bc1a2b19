"""What a run taught: the effect of a knob between trials that differ in nothing else, and where the model was wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.evidence.trial import TrialOutcome, TrialRecord

LAYOUT = "layout"


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
    """Return the effects that two measured trials show, largest first; the earlier trial is `before`."""
    measured = _measured(records)
    found = [
        KnobEffect(
            knob="parallelism" if knob == LAYOUT else knob,
            before=_value(a, knob),
            after=_value(b, knob),
            change=change,
            trials=(a.number, b.number),
        )
        for a, b in itertools.combinations(measured, 2)
        if (knob := _only_difference(a.params, b.params)) is not None and (change := _change(a, b))
    ]
    return sorted(found, key=lambda effect: -max(abs(value) for value in effect.change.values()))


def residuals(records: Sequence[TrialRecord]) -> list[TrialResidual]:
    """Return measured over predicted per family, largest first."""
    families: dict[str, list[float]] = {}
    for record in _measured(records):
        families.setdefault(record.label, []).append(math.log(max(record.over_predicted, 1e-9)))
    found = [
        TrialResidual(family=family, mean=math.expm1(sum(logs) / len(logs)), trials=len(logs))
        for family, logs in families.items()
    ]
    return sorted(found, key=lambda residual: -abs(residual.mean))


def _measured(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [r for r in records if r.outcome is TrialOutcome.MEASURED and r.repeats is None]


def _only_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    different = [name for name, value in a.items() if b.get(name) != value]
    return different[0] if len(different) == 1 else None


def _value(record: TrialRecord, knob: str) -> str:
    return record.label if knob == LAYOUT else str(record.params[knob])


def _change(a: TrialRecord, b: TrialRecord) -> dict[int, float]:
    before = {point.concurrency: point.output_tok_s for point in a.points}
    return {
        point.concurrency: point.output_tok_s / before[point.concurrency] - 1.0
        for point in b.points
        if before.get(point.concurrency)
    }
