#!/usr/bin/env python3
"""How well the model predicts releases of SGLang and GPU families it has never seen.

    python tools/cross_validate.py

Every (GPU family, release) is left out in turn: the family is fitted again without a single record of it (the slopes
of the whole fit stand; the records of the release are gone from all that is shared), and the release is predicted
like one that nobody measured; then once more after three of its own measurements, which are not scored. Bands: the
share of measurements inside the 90 % band of their prediction.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it off

from fit_profiles import finished, fit_all
from fit_records import Record, Release
from hierarchy import Family, drift_file, without

from hwprobe.errors import InputError
from models.engine.profile import HOPPER, EngineProfile
from models.engine.versions import profile_among
from models.records.calibration import calibrate
from models.records.case import predict_case
from models.records.residuals import FIGURES
from models.serving.uncertainty import BAND_SIGMAS

AMD = ("cdna3", "cdna4")
GROUPS = (
    "Hopper 0.5 TP8", "Hopper attention DP or EP", "Blackwell", "AMD", "MTP", "MTP, acceptance not given", "0.4.x",
    "decode steps of fleets",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one record: its relative error, and the error in units of one expected standard deviation."""

    group: str
    figure: str
    error: float
    z: float


def main() -> int:
    """Print errors and coverage per group, from nothing and after three points."""
    scores: dict[str, list[Score]] = {"no point": [], "three points": []}
    for family in fit_all().values():
        for release in family.releases:
            unseen, taught = left_out(family, release)
            scores["no point"] += unseen
            scores["three points"] += taught
            print(f"{family.name:9} {release.version:6} no point:     {summary(unseen)}")
            if taught:
                print(f"{family.name:9} {release.version:6} three points: {summary(taught)}")
    for name, group_scores in scores.items():
        print(f"\n{name}")
        for group in GROUPS:
            mine = [score for score in group_scores if score.group == group]
            if mine:
                print(f"  {group:26} {summary(mine)}")
    return 0


def left_out(family: Family, release: Release) -> tuple[list[Score], list[Score]]:
    """Predict a release as if nobody had measured it, and after three points of it."""
    others = without(family, release)
    others_profiles = tuple(finished(others, r) for r in others.releases)
    base = profile_among(others_profiles, drift_file(others), Version(release.version))
    held_out = family.records[release]
    unseen = score(held_out, base)
    three = teachers(held_out)
    if len(three) < 3:
        return unseen, []
    engine = calibrate([record.case(base) for record in three], base).profile
    return unseen, score([record for record in held_out if record not in three], engine)


def teachers(records: Sequence[Record]) -> list[Record]:
    """Return three plain measurements to calibrate from: few users, many users, long prompts; one layout."""
    plain = [r for r in records if not r.point.mtp and r.point.metric_kind == "serving" and r.doubt == 1.0]
    layouts = Counter((r.point.n_gpus, r.point.tp, r.point.ep, r.point.gpu) for r in plain)
    if not layouts:
        return []
    usual = layouts.most_common(1)[0][0]
    alike = [r for r in plain if (r.point.n_gpus, r.point.tp, r.point.ep, r.point.gpu) == usual]
    by_load = sorted(alike, key=lambda r: (r.point.concurrency or 0.0, r.point.isl or 0.0, r.point.osl or 0.0))
    long = max(by_load, key=lambda r: r.point.isl or 0.0)
    loads = [by_load[0], long, next((r for r in reversed(by_load) if r is not long), by_load[-1])]
    return loads if len({r.point.id for r in loads}) == 3 else []


def group_of(record: Record) -> str:
    """Return the group a record is scored in."""
    point, release = record.point, record.release
    if point.id.endswith("-decode"):
        return "decode steps of fleets"
    if Version(release.version) < Version("0.5"):
        return "0.4.x"
    if point.mtp:
        return "MTP"
    if release.family != HOPPER:
        return "AMD" if release.family in AMD else "Blackwell"
    apart = (point.attn_dp or 1) > 1 or (point.ep or 1) > 1
    return "Hopper attention DP or EP" if apart else "Hopper 0.5 TP8"


def score(records: Iterable[Record], engine: EngineProfile) -> list[Score]:
    """Return the errors of every measured figure of the records."""
    scores = []
    for record in records:
        group = group_of(record)
        scores += _score(record, engine, group)
        if group == "MTP":
            blind = replace(record, point=replace(record.point, accept_length=None))
            scores += _score(blind, engine, "MTP, acceptance not given")
    return scores


def _score(record: Record, engine: EngineProfile, group: str) -> list[Score]:
    try:
        case = record.case(engine)
    except InputError:
        return []
    predicted, wrong = predict_case(case)
    expected_error = {"tpot": wrong.tpot, "ttft": wrong.ttft, "output": wrong.output_tok_s}
    scores = []
    for kind, names in FIGURES.items():
        logs = [math.log(f / case.measured[n]) for n in names if n in case.measured and (f := predicted.figure(n))]
        if logs:
            mean = sum(logs) / len(logs)
            scores.append(Score(group, kind, math.expm1(-mean), mean / expected_error[kind]))
    return scores


def summary(scores: Sequence[Score]) -> str:
    """MAPE, median, bias (measured over predicted) and coverage of the 90 % band by figure."""
    by_figure: dict[str, list[Score]] = defaultdict(list)
    for each in scores:
        by_figure[each.figure].append(each)
    parts = []
    for kind in FIGURES:
        mine = by_figure[kind]
        if mine:
            errors = 100.0 * np.array([each.error for each in mine])
            inside = 100.0 * np.mean([abs(each.z) <= BAND_SIGMAS for each in mine])
            parts.append(
                f"{kind} {abs(errors).mean():.1f} % (median {np.median(abs(errors)):.1f}, bias {errors.mean():+.1f}), "
                f"band {inside:.0f} % of {len(mine)}"
            )
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
