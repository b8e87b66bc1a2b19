#!/usr/bin/env python3
"""Fit the shipped engine profiles to the published measurements, and write models/profiles/.

    python tools/fit_profiles.py            write the profiles
    python tools/fit_profiles.py --check    fail if the files differ from what the data give

Two stages. Numbers that all versions share (expert popularity, work per token, the KV stream, independence of
random tokens) come from a joint fit of all versions; what a version has of its own comes from a fit of that
version's points alone, with a wide prior. 0.4.3 has no complete record: its profile rests on five incomplete ones
and is marked indicative. The founding case is not among them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hwprobe.files import encode_json
from models.engine.profile import (
    FITTED,
    Drift,
    EngineParameters,
    EngineProfile,
    RelativeError,
    as_matrix,
)
from models.engine.versions import release_number
from models.layout import Array
from models.records.calibration import SCATTER, Calibration, Fit, calibrate, linearised, residuals
from models.records.case import Case
from models.records.points import METRICS, Point, parse_point, read_lines
from planner.point_case import case_of

DATA = ROOT / "models" / "data" / "published_points.jsonl"
PROFILES = ROOT / "models" / "profiles"
# Shipped profile -> versions whose points it is fitted to.
FAMILIES = {
    "0.4.5": ("0.4.5.post3",),
    "0.5.5": ("0.5.5",),
    "0.5.6": ("0.5.6",),
    "0.5.7": ("0.5.7",),
    "0.5.12": ("0.5.12",),
}
INDICATIVE = {"0.4.3": ("0.4.1.post2", "0.4.3", "0.4.3.post4")}
SOURCE = "published 8xH200 TP8 measurements (models/data/published_points.jsonl)"
# Where every fit starts, and how wide its prior is (relative standard deviations, in the order of FITTED).
START = EngineParameters(
    tau_us=3.5, eta_w=0.75, eta_pf=0.8, t_pf0_ms=80.0, eta_kv=0.86, mla_floor_us=9.0, token_us=0.3, host_ms=0.5,
    ep_layer_us=85.0, dp_layer_us=30.0, first_wave_s=1.0,
)  # fmt: skip
WIDE = np.array([0.7, 0.25, 0.35, 0.5, 0.5])
# Shared numbers: start and one standard deviation of the prior; independence and efficiencies in logarithms.
SHARED = {
    "sigma": (0.45, 0.2),
    "random_independence": (math.log(0.5), 0.5),
    "token_us": (math.log(0.3), 0.5),
    "eta_kv": (math.log(0.86), 0.04),
}
SHARED_ROUNDS = 6
SHARED_STEP = 0.05
DIGITS = 4
# Least variance per release of each of FITTED: (1 %, 1 %, 1 %, 3 %, 10 %) squared.
DRIFT_FLOOR = (1e-4, 1e-4, 1e-4, 1e-3, 1e-2)
# Where no measured TTFT was fitted.
UNKNOWN_PREFILL_ERROR = 0.3
# Least decode error of a profile made from incomplete records, which may come from differently configured servers.
INDICATIVE_ERROR = 0.2
# The founding case is shown beside predictions, never fitted.
FOUNDING_GPU = "141GB-4.8TBs (unnamed)"


@dataclass(frozen=True, slots=True)
class Shared:
    """The numbers all versions share."""

    sigma: float
    random_independence: float
    token_us: float
    eta_kv: float


def points() -> list[Point]:
    """Read the published points."""
    return [parse_point(line, number) for number, line in read_lines(DATA)]


def trains(point: Point) -> bool:
    """Whether a point is fitted: complete records of plain TP8 on 8xH200, no outliers."""
    return (
        point.gpu == "H200"
        and (point.n_gpus, point.tp, point.attn_dp, point.ep) == (8, 8, 1, 1)
        and not point.mtp
        and not point.disaggregated
        and point.trust == "A"
        and point.role != "outlier"
    )


def merged(same: Sequence[Point]) -> list[Point]:
    """Merge repeats of one question into one point with the median of each figure."""
    groups: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in same:
        asked = replace(point, id="", role="", extra={}, **dict.fromkeys(METRICS))
        groups[(*(getattr(asked, name) for name in Point.__slots__ if name != "extra"),)].append(point)
    found = []
    for group in groups.values():
        values = {name: [v for p in group if (v := getattr(p, name)) is not None] for name in METRICS}
        figures = {name: median(v) if v else None for name, v in values.items()}
        found.append(replace(group[0], id="+".join(p.id for p in group), **figures))
    return found


def base_profile(version: str, shared: Shared) -> EngineProfile:
    """The profile a fit starts from."""
    return EngineProfile(
        name=f"sglang-{version}-hopper",
        sglang_version=version,
        gpu_family="hopper",
        status="fitted",
        parameters=replace(START, token_us=shared.token_us, eta_kv=shared.eta_kv),
        covariance=as_matrix(np.zeros((len(FITTED), len(FITTED)))),
        relative_error=RelativeError(decode=0.02, prefill=0.12),
        sigma=shared.sigma,
        random_independence=shared.random_independence,
        source=SOURCE,
    )


def cases_of(version: str, chosen: Sequence[Point], shared: Shared) -> list[Case]:
    """The cases of a version under its base profile."""
    base = base_profile(version, shared)
    return [case_of(point, engine=base) for point in chosen]


def fit(version: str, chosen: Sequence[Point], shared: Shared) -> Calibration:
    """Fit a version's own numbers."""
    return calibrate(cases_of(version, chosen, shared), base_profile(version, shared), spread=WIDE)


def joint(families: dict[str, list[Point]]) -> Shared:
    """Fit the shared numbers together with each version's own: Gauss-Newton over all versions at once."""
    size, count = len(SHARED), len(FITTED)
    first = np.array([start for start, _ in SHARED.values()])
    own_first = START.fitted()
    place, own = first.copy(), dict.fromkeys(families, own_first)
    precision = np.array([1.0 / spread**2 for _, spread in SHARED.values()])
    for _ in range(SHARED_ROUNDS):
        total = size + count * len(families)
        matrix, right = np.zeros((total, total)), np.zeros(total)
        matrix[:size, :size] += np.diag(precision)
        right[:size] += precision * (place - first)
        chi2 = 0.0
        for number, (version, chosen) in enumerate(families.items()):
            z, slopes = _slopes(version, chosen, place, own[version])
            mine = slice(size + count * number, size + count * (number + 1))
            columns = [*range(size), *range(mine.start, mine.stop)]
            matrix[np.ix_(columns, columns)] += slopes.T @ slopes
            right[columns] += slopes.T @ z
            matrix[mine, mine] += np.diag(1.0 / WIDE**2)
            right[mine] += (own[version] - own_first) / WIDE**2
            chi2 += float(z @ z)
        move = np.clip(-np.linalg.solve(matrix, right), -0.35, 0.35)
        place = place + move[:size]
        for number, version in enumerate(families):
            own[version] = own[version] + move[size + count * number : size + count * (number + 1)]
        print(f"  {_shared(place)}, chi2 {chi2:.1f} before this step", file=sys.stderr)
    return _shared(place)


def _slopes(version: str, chosen: Sequence[Point], place: Array, own: Array) -> tuple[Array, Array]:
    """Weighted residuals of a version and their slopes along the shared and the own numbers."""

    def fit_at(shared: Array) -> Fit:
        found = cases_of(version, chosen, _shared(shared))
        return residuals(found, found[0].context.engine.parameters.moved(own))

    everything = np.ones(len(FITTED), dtype=bool)
    cases = cases_of(version, chosen, _shared(place))
    here, along_own = linearised(cases, cases[0].context.engine.parameters, own, everything)
    columns = []
    for index in range(len(SHARED)):
        aside = place.copy()
        aside[index] += SHARED_STEP
        columns.append((fit_at(aside).residuals - here.residuals) / SHARED_STEP)
    weight = np.sqrt(here.weights) / here.scatter
    return weight * here.residuals, weight[:, None] * np.hstack([np.array(columns).T, along_own])


def _shared(place: Array) -> Shared:
    values = dict(zip(SHARED, place.tolist(), strict=True))
    return Shared(
        sigma=_rounded(max(values["sigma"], 0.0)),
        random_independence=_rounded(min(1.0, math.exp(values["random_independence"]))),
        token_us=_rounded(math.exp(values["token_us"])),
        eta_kv=_rounded(math.exp(values["eta_kv"])),
    )


def finished(version: str, found: Calibration, chosen: Sequence[Point], status: str) -> EngineProfile:
    """The profile as it is shipped: rounded, with its error and what it rests on."""
    parameters = EngineParameters(
        **{name: _rounded(getattr(found.profile.parameters, name)) for name in EngineParameters.__slots__}
    )
    fitted = residuals([case_of(point, engine=found.profile) for point in chosen], parameters)
    decode = [abs(x) for x, kind in zip(fitted.residuals, fitted.kinds, strict=True) if kind == "tpot"]
    first = [x for x, kind, s in zip(fitted.residuals, fitted.kinds, fitted.scatter, strict=True)
             if kind == "ttft" and s == SCATTER["ttft"]]  # fmt: skip
    prefill = math.sqrt(float(np.mean(np.square(first)))) if first else UNKNOWN_PREFILL_ERROR
    return replace(
        found.profile,
        name=f"sglang-{version}-hopper",
        status=status,
        parameters=parameters,
        source=SOURCE,
        relative_error=RelativeError(
            decode=round(max(SCATTER["tpot"] if status == "fitted" else INDICATIVE_ERROR, found.rms_decode), 3),
            prefill=round(max(SCATTER["ttft"], prefill), 3),
        ),
        tpot_mape_percent=round(100.0 * float(np.mean(decode)), 2) if decode else None,
        fitted_to=tuple(sorted(name for point in chosen for name in point.id.split("+"))),
    )


def drift_of(profiles: Sequence[EngineProfile]) -> Drift:
    """Estimate trend and variance per release from the steps between neighbouring versions.

    Variance: squared steps per release around the trend, over one step less than there are (the trend took
    one), and a floor where the few steps happened to be small. The trend is the line from first to last.
    """
    places = [release_number(Version(profile.sglang_version)) for profile in profiles]
    values = [profile.parameters.fitted() for profile in profiles]
    gaps = np.diff(places)
    steps = np.diff(values, axis=0)
    mean = (values[-1] - values[0]) / (places[-1] - places[0])
    away = steps - gaps[:, None] * mean
    outer = [np.outer(a, a) / gap for a, gap in zip(away, gaps, strict=True)]
    covariance = np.sum(outer, axis=0) / (len(outer) - 1) + np.diag(DRIFT_FLOOR)
    return Drift(
        mean=tuple(round(float(x), 5) for x in mean),
        covariance=as_matrix(covariance),
        source="steps between the fitted versions " + ", ".join(p.sglang_version for p in profiles),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def build() -> dict[str, str]:
    """Fit everything and return the files' names and texts."""
    everything = points()
    families = {
        version: merged([p for p in everything if trains(p) and p.engine_version in of])
        for version, of in FAMILIES.items()
    }
    shared = joint(families)
    profiles = [finished(v, fit(v, chosen, shared), chosen, "fitted") for v, chosen in families.items()]
    files = {"drift.json": encode_json(drift_of(profiles)) + "\n"}
    for version, of in INDICATIVE.items():
        chosen = [p for p in everything if p.engine_version in of and indicates(p)]
        oldest = finished(version, fit(version, chosen, shared), chosen, "indicative")
        said = f"rests on {len(chosen)} incomplete records; not on the founding case"
        profiles.insert(0, replace(oldest, source=f"{SOURCE}; {said}"))
    for profile in profiles:
        files[f"sglang-{profile.sglang_version}.json"] = encode_json(profile) + "\n"
        values = ", ".join(f"{name} {getattr(profile.parameters, name):g}" for name in FITTED)
        print(f"  {profile.sglang_version}: {values}; TPOT {profile.tpot_mape_percent} %", file=sys.stderr)
    return files


def indicates(point: Point) -> bool:
    """Whether a record says something about the oldest version: plain TP8 on 8xH200, however incomplete."""
    return (
        point.gpu == "H200"
        and (point.n_gpus, point.tp, point.attn_dp, point.ep) == (8, 8, 1, 1)
        and not point.mtp
        and point.gpu != FOUNDING_GPU
    )


def main() -> int:
    """Write the profiles, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    arguments = parser.parse_args()
    files = build()
    if arguments.check:
        different = [name for name, text in files.items() if (PROFILES / name).read_text(encoding="utf-8") != text]
        print("profiles agree with the data" if not different else f"these differ: {', '.join(different)}")
        return 1 if different else 0
    for name, text in files.items():
        (PROFILES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
