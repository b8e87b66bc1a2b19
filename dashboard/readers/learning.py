"""Calibration from a run's points, for a page that cannot wait for hundreds of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from dashboard.readers.runs import RunView, Stamp
from hwprobe.errors import InputError
from models.records.calibration import Calibration
from models.records.case import expected
from tuner.calibrate.cases import Setting, read_cases
from tuner.calibrate.learned import learn

# Each costs about a dozen replays; those left out lie between the ones that are used.
MOST_POINTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedProfile:
    """A calibration, and output tok/s of each point used: measured, and predicted before and after."""

    calibration: Calibration
    measured: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    names: tuple[str, ...]


def calibrated(run: RunView) -> LearnedProfile:
    """Return what the run's points, evenly thinned, teach the engine profile.

    Raises InputError when no point can be used.
    """
    return _calibrated(run.path, run.stamp)


@lru_cache(maxsize=4)
def _calibrated(path: Path, stamp: Stamp) -> LearnedProfile:
    cases = [line.case for line in read_cases(path, Setting()) if line.case is not None and not line.left_out]
    if not cases:
        raise InputError("no measured point to calibrate from")
    step = max(1, -(-len(cases) // MOST_POINTS))
    used = cases[::step]
    calibration = learn(used, used[0].context.engine)
    accepted = used[0].context.acceptance if calibration.acceptance is None else calibration.acceptance
    after = [case.with_parameters(calibration.profile.parameters).with_acceptance(accepted) for case in used]
    return LearnedProfile(
        calibration=calibration,
        measured=tuple(case.measured["output_tok_s"] for case in used),
        before=tuple(expected(case).output_tok_s for case in used),
        after=tuple(expected(case).output_tok_s for case in after),
        names=tuple(case.id for case in used),
    )


def parameter_table(calibration: Calibration) -> pd.DataFrame:
    """Return each parameter's value and spread, before and after."""
    return pd.DataFrame([
        {
            "parameter": item.name, "before": item.value_before, "after": item.value_after,
            "known to, before %": round(100 * item.before), "after %": round(100 * item.after),
            "by the data": "determined" if item.by_data else "not determined",
        }
        for item in calibration.parameters
    ])  # fmt: skip
