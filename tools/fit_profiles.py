#!/usr/bin/env python3
"""Fit the shipped engine profiles to the published measurements, and write models/profiles/.

    python tools/fit_profiles.py            write the profiles
    python tools/fit_profiles.py --check    fail if the files differ from what the data give

One profile for every GPU family and release that was measured. The releases of a family are fitted together
(tools/hierarchy.py); what the workload has of its own (expert popularity, how far random tokens choose on their own)
comes from Hopper, whose records are richest, and holds for all. The founding case is not among the records.
"""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]  # PYTHONSAFEPATH keeps the latter off

from fit_records import Record, Release, merged, published, records
from hierarchy import DIGITS, Family, Workload, covariance_of, drift_file, fitted, profile_of

from hwprobe.files import encode_json
from models.engine.profile import FAMILIES, FITTED, HOPPER, EngineParameters, EngineProfile, RelativeError
from models.records.residuals import SCATTER

PROFILES = ROOT / "models" / "profiles"
SOURCE = "published measurements (models/data/published_points.jsonl)"
# Hopper is fitted first, and frees these.
WORKLOAD = Workload(sigma=0.37, random_independence=0.46)
# A profile that rests on fewer clean records than this (each counts one over its doubt squared) is indicative.
CLEAN_RECORDS = 3.0
# Where no measured TTFT was fitted, and the least decode error of an indicative profile.
UNKNOWN_PREFILL_ERROR, INDICATIVE_ERROR = 0.3, 0.08


def by_family() -> dict[str, dict[Release, list[Record]]]:
    """Return the records to fit, repeats merged, by family and release."""
    families: dict[str, dict[Release, list[Record]]] = {name: {} for name in FAMILIES}
    for record in merged(records(published())):
        families[record.release.family].setdefault(record.release, []).append(record)
    return families


def fit_all() -> dict[str, Family]:
    """Fit every family: Hopper with the workload's numbers, the others with those."""
    chosen = by_family()
    hopper = fitted(HOPPER, chosen[HOPPER], WORKLOAD, frees_workload=True)
    shared = Workload(_rounded(hopper.workload.sigma), _rounded(hopper.workload.random_independence))
    others = [name for name in FAMILIES if name != HOPPER]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        fitted_others = pool.map(_fitted, [(name, chosen[name], shared) for name in others])
        return {HOPPER: hopper} | dict(zip(others, fitted_others, strict=True))


def _fitted(job: tuple[str, dict[Release, list[Record]], Workload]) -> Family:
    name, chosen, shared = job
    return fitted(name, chosen, shared, frees_workload=False)


def finished(family: Family, release: Release) -> EngineProfile:
    """The profile of a release as it is shipped: rounded, with its error and what it rests on."""
    profile, block, chosen = profile_of(family, release), family.blocks[release], family.records[release]
    doubts = {record.point.id: record.doubt for record in chosen}
    decode, prefill = _scatter_of(family, release, "tpot"), _scatter_of(family, release, "ttft")
    clean = sum(1.0 / doubt**2 for doubt in doubts.values())
    status = "fitted" if clean >= CLEAN_RECORDS else "indicative"
    least = SCATTER["tpot"] if status == "fitted" else INDICATIVE_ERROR
    tpot = [abs(x) for x, kind in zip(block.fit.residuals, block.fit.kinds, strict=True) if kind == "tpot"]
    parameters = EngineParameters(
        **{name: _rounded(getattr(profile.parameters, name)) for name in EngineParameters.__slots__}
    )
    return replace(
        profile,
        status=status,
        parameters=parameters,
        covariance=tuple(tuple(_rounded(x) for x in row) for row in covariance_of(family, release).tolist()),
        relative_error=RelativeError(
            decode=round(max(least, decode or 0.0), 3),
            prefill=round(max(SCATTER["ttft"], prefill or UNKNOWN_PREFILL_ERROR), 3),
        ),
        sigma=_rounded(profile.sigma),
        random_independence=_rounded(profile.random_independence),
        source=SOURCE,
        points=len(chosen),
        tpot_mape_percent=round(100.0 * float(np.mean(tpot)), 2) if tpot else None,
        fitted_to=tuple(sorted({name.removesuffix("-decode") for ids in doubts for name in ids.split("+")})),
    )


def _scatter_of(family: Family, release: Release, kind: str) -> float | None:
    """Root mean square of a release's residuals, each record by its doubt; None where there are none."""
    fit = family.blocks[release].fit
    doubts = {record.point.id: record.doubt for record in family.records[release]}
    rows = [(x, doubts[o]) for x, o, k in zip(fit.residuals, fit.owners, fit.kinds, strict=True) if k == kind]
    if not rows:
        return None
    return math.sqrt(sum((x / d) ** 2 for x, d in rows) / sum(1.0 / d**2 for _, d in rows))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def build() -> dict[str, str]:
    """Fit everything and return the files' names and texts."""
    files = {}
    for name, family in fit_all().items():
        files[f"{name}/drift.json"] = encode_json(drift_file(family)) + "\n"
        for release in family.releases:
            profile = finished(family, release)
            files[f"{name}/sglang-{release.version}.json"] = encode_json(profile) + "\n"
            values = ", ".join(f"{field} {getattr(profile.parameters, field):g}" for field in FITTED)
            print(f"  {name} {release.version}: {values}; TPOT {profile.tpot_mape_percent} %", file=sys.stderr)
    return files


def main() -> int:
    """Write the profiles, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    arguments = parser.parse_args()
    files = build()
    on_disk = {str(path.relative_to(PROFILES)): path for path in PROFILES.glob("*/*.json")}
    if arguments.check:
        same = {name for name, path in on_disk.items() if files.get(name) == path.read_text(encoding="utf-8")}
        different = sorted((set(files) | set(on_disk)) - same)
        print("profiles agree with the data" if not different else f"these differ: {', '.join(different)}")
        return 1 if different else 0
    for name in set(on_disk) - set(files):
        on_disk[name].unlink()
    for name, text in files.items():
        (PROFILES / name).parent.mkdir(parents=True, exist_ok=True)
        (PROFILES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
