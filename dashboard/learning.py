"""Calibration from a run's points, for a page that cannot wait for hundreds of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from dashboard.data import RunView, Stamp
from hwprobe.errors import InputError
from models.calibration import Calibration, calibrate
from tuner.cases import Setting, read_cases

# Each costs about a dozen replays; those left out lie between the ones that are used.
MOST_POINTS = 12


def calibrated(run: RunView) -> tuple[Calibration, int]:
    """Return the calibration from the run's points, evenly thinned, and how many were used.

    Raises InputError when no point can be used.
    """
    return _calibrated(run.path, run.stamp)


@lru_cache(maxsize=4)
def _calibrated(path: Path, stamp: Stamp) -> tuple[Calibration, int]:
    cases = [line.case for line in read_cases(path, Setting()) if line.case is not None]
    if not cases:
        raise InputError("no measured point to calibrate from")
    step = max(1, -(-len(cases) // MOST_POINTS))
    used = cases[::step]
    return calibrate(used, used[0].context.engine), len(used)


def parameter_table(found: Calibration) -> pd.DataFrame:
    """Return each parameter's value and spread, before and after."""
    return pd.DataFrame([
        {
            "parameter": item.name, "before": item.value_before, "after": item.value_after,
            "known to, before %": round(100 * item.before), "after %": round(100 * item.after),
            "by the data": "determined" if item.by_data else "not determined",
        }
        for item in found.parameters
    ])  # fmt: skip
