"""What a run says of the machine: a calibrated engine profile, and how many drafted tokens are accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.records.calibration import Calibration, calibrate
from models.records.case import Case, expected
from models.serving.estimate import Context
from models.workload import Workload
from tuner.calibrate.cases import trial_case, usable_points
from tuner.evidence.trial import TrialOutcome, TrialRecord

# Trials that are learned from, the best first, and points of each: the decision and the lightest load.
MOST_TRIALS = 6
MOST_MTP_TRIALS = 3
# The acceptance of a drafted token is looked for between these, in so many halvings.
ACCEPTANCE = (0.2, 0.97)
HALVINGS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated:
    """The profile with what the data did to it, and the acceptance per drafted token (None: MTP was not measured)."""

    calibration: Calibration
    acceptance: float | None

    @property
    def sentence(self) -> str:
        """Return what moved, in words."""
        moved = [
            f"{item.name} {item.value_before:.3g} -> {item.value_after:.3g}"
            for item in self.calibration.parameters
            if item.by_data
        ]
        accepted = "" if self.acceptance is None else f"; {self.acceptance:.2f} of drafted tokens accepted"
        return ("; ".join(moved) or "no figure of the machine was determined") + accepted


def recalibrate(records: Sequence[TrialRecord], workload: Workload, context: Context) -> Recalibrated | None:
    """Calibrate from the measured trials, None where there is nothing to learn from.

    Configurations without MTP move the engine's figures, since with it the acceptance would be mistaken for speed; the
    acceptance follows from those with MTP under the calibrated figures.
    """
    measured = sorted(
        (r for r in records if r.outcome is TrialOutcome.MEASURED and r.repeats is None), key=lambda r: -r.objective
    )
    plain = [record for record in measured if record.config.speculative is None]
    with_mtp = [record for record in measured if record.config.speculative is not None]
    cases = _cases((plain or with_mtp)[:MOST_TRIALS], workload, context)
    if not cases:
        return None
    calibration = calibrate(cases, context.engine)
    acceptance = None
    if plain and with_mtp:
        known = replace(context, engine=calibration.profile)
        acceptance = _acceptance(_cases(with_mtp[:MOST_MTP_TRIALS], workload, known))
    return Recalibrated(calibration=calibration, acceptance=acceptance)


def _cases(records: Sequence[TrialRecord], workload: Workload, context: Context) -> list[Case]:
    chosen = []
    for record in records:
        points = usable_points(record)
        kept = {id(p): p for p in (points[:1] + [p for p in points if p == record.target])}
        chosen += [trial_case(record, point, workload, context) for point in kept.values()]
    return chosen


def _acceptance(cases: Sequence[Case]) -> float | None:
    """Return the acceptance under which the output rates are met on average (rates rise with it), by bisection."""
    if not cases:
        return None

    def too_fast(acceptance: float) -> bool:
        logs = []
        for case in cases:
            asked = replace(case, context=replace(case.context, acceptance=acceptance))
            logs.append(math.log(expected(asked).output_tok_s / case.measured["output_tok_s"]))
        return sum(logs) > 0.0

    low, high = ACCEPTANCE
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if too_fast(middle) else (middle, high)
    return (low + high) / 2.0
