#!/usr/bin/env python3
"""How well the model predicts an SGLang version it has never seen, on 8xH200 TP8.

    python tools/cross_validate.py

Each version is left out in turn. Everything is fitted again without a single point of it (the shared numbers, the
other versions' profiles, the drift between versions); then it is predicted, first from nothing, then with three
measured points (4 and 64 clients at 1k/1k, 16 at 8k/1k), which are not scored. Bands: the share of measurements
that lie within the 90 % band of their prediction.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from fit_profiles import FAMILIES, drift_of, finished, fit, joint, merged, points, trains
from packaging.version import Version

from models.engine.profile import EngineProfile
from models.engine.versions import profile_among
from models.records.calibration import FIGURES, calibrate
from models.records.case import Case, predict_case
from models.records.points import Point
from models.serving.uncertainty import BAND_SIGMAS
from planner.point_case import case_of

CALIBRATION = ((4, 1024, 1024), (64, 1024, 1024), (16, 8192, 1024))
# Left out in turn; 0.4.5 is the only one of its generation and is always known.
SCORED = ("0.5.5", "0.5.6", "0.5.7", "0.5.12")


def main() -> int:
    """Print errors and coverage per version and overall."""
    everything = points()
    families = {
        version: [p for p in everything if trains(p) and p.engine_version in of] for version, of in FAMILIES.items()
    }
    scores: dict[str, list[tuple[str, float, float]]] = {"no point": [], "three points": []}
    for version in SCORED:
        known = {v: merged(chosen) for v, chosen in families.items() if v != version}
        base = left_out(known, version)
        asked = merged(families[version])
        three = [next(p for p in asked if (p.concurrency, p.isl, p.osl) == question) for question in CALIBRATION]
        found = calibrate([case_of(point, engine=base) for point in three], base).profile
        for name, engine, test in (
            ("no point", base, asked),
            ("three points", found, [p for p in asked if p not in three]),
        ):
            residuals = score([case_of(point, engine=engine) for point in test])
            scores[name] += residuals
            print(f"{version:7} {name:13} {summary(residuals)}")
    for name, residuals in scores.items():
        print(f"all     {name:13} {summary(residuals)}")
    return 0


def left_out(known: dict[str, list[Point]], version: str) -> EngineProfile:
    """The profile of `version` as it would be if nobody had measured it."""
    shared = joint(known)
    profiles = tuple(finished(v, fit(v, chosen, shared), chosen, "fitted") for v, chosen in known.items())
    return profile_among(profiles, drift_of(profiles), Version(version))


def score(cases: Sequence[Case]) -> list[tuple[str, float, float]]:
    """Return (figure, relative error, errors in units of one expected standard deviation) per measured figure."""
    found = []
    for case in cases:
        predicted, wrong = predict_case(case)
        expected_error = {"tpot": wrong.tpot, "ttft": wrong.ttft, "output": wrong.output_tok_s}
        for kind, names in FIGURES.items():
            logs = [math.log(f / case.measured[n]) for n in names if n in case.measured and (f := predicted.figure(n))]
            if logs:
                mean = sum(logs) / len(logs)
                found.append((kind, math.expm1(mean), mean / expected_error[kind]))
    return found


def summary(residuals: Sequence[tuple[str, float, float]]) -> str:
    """MAPE, largest error, bias and coverage of the 90 % band by figure."""
    parts = []
    for kind in FIGURES:
        errors = np.array([e for k, e, _ in residuals if k == kind])
        inside = np.array([abs(z) <= BAND_SIGMAS for k, _, z in residuals if k == kind])
        parts.append(
            f"{kind}: MAPE {100 * abs(errors).mean():.1f} % max {100 * abs(errors).max():.0f} % "
            f"bias {100 * errors.mean():+.1f} % in band {100 * inside.mean():.0f} % of {len(inside)}"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
