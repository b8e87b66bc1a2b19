"""Engine profiles of unmeasured versions: between two measured ones, or beyond the last."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import cache

import numpy as np
from packaging.version import Version

from models.engine.profile import (
    FAMILIES,
    HOPPER,
    Drift,
    EngineProfile,
    RelativeError,
    as_matrix,
    shipped_drift,
    shipped_profiles,
)
from models.version import NEWEST

# A trend is trusted this many releases ahead; beyond, only the uncertainty grows, and that up to a limit.
TREND_RELEASES = 5.0
WIDEST_RELEASES = 15.0
# Before 0.5 a release changed this many times as much (variance): from 0.4.3 to 0.4.5 a step halved.
EARLY_DRIFT, EARLY_END = 9.0, Version("0.5.0")
# Last micro release of every 0.x: 0.4.10 is followed by 0.5.0, and the newest known by what comes after 0.5.
LAST_MICRO = {4: 10, 5: Version(NEWEST).micro}


@cache
def profile_for(version: Version, family: str = HOPPER) -> EngineProfile:
    """Return the profile of an SGLang version on a GPU family from the shipped ones: Hopper's for one without any."""
    measured = family if family in FAMILIES else HOPPER
    return profile_among(shipped_profiles(measured), shipped_drift(measured), version)


def profile_among(profiles: tuple[EngineProfile, ...], drift: Drift, version: Version) -> EngineProfile:
    """Return the profile of a version: one of `profiles` (oldest first), interpolated, or extrapolated, as its status
    says.

    Between two releases the logarithms of the parameters walk from one to the other, with the variance of a
    Brownian bridge; beyond the last they follow the trend for a few releases while the variance grows.
    """
    positions = [release_number(Version(profile.sglang_version)) for profile in profiles]
    number = release_number(version)
    index = bisect_left(positions, number)
    if index < len(profiles) and positions[index] == number:
        return profiles[index]
    if index == 0:
        return _extrapolated(profiles[0], drift, version, number - positions[0])
    if index == len(profiles):
        return _extrapolated(profiles[-1], drift, version, number - positions[-1])
    return _interpolated(profiles[index - 1], profiles[index], drift, version)


def release_number(version: Version) -> float:
    """Place a version on a line of releases, in order: 0.4.10 is followed by 0.5.0; post releases stay in place."""
    major, minor, micro = (*version.release, 0, 0)[:3]
    before = sum(LAST_MICRO.get(m, 0) + 1 for m in range(4, minor))
    return before + micro + (1000.0 * major)


def drift_between(older: str, newer: str) -> tuple[float, float]:
    """Return the releases between two versions, and how many times the usual drift one of them brings there."""
    gap = release_number(Version(newer)) - release_number(Version(older))
    return gap, EARLY_DRIFT if Version(older) < EARLY_END else 1.0


def _interpolated(older: EngineProfile, newer: EngineProfile, drift: Drift, version: Version) -> EngineProfile:
    first, last = (release_number(Version(profile.sglang_version)) for profile in (older, newer))
    share = (release_number(version) - first) / (last - first)
    _, scale = drift_between(older.sglang_version, newer.sglang_version)
    bridge = (last - first) * share * (1.0 - share) * scale * np.array(drift.covariance)
    # Neighbours are fitted together, so their errors go together: they do not average out.
    blended = (1.0 - share) * np.array(older.covariance) + share * np.array(newer.covariance)
    mean = (1.0 - share) * older.parameters.fitted() + share * newer.parameters.fitted()
    warning = f"SGLang {version}: engine profile interpolated between {older.sglang_version} and {newer.sglang_version}"
    moved_profile = replace(newer, parameters=newer.parameters.moved(mean), covariance=as_matrix(blended + bridge))
    return _unmeasured(moved_profile, version, "interpolated", warning)


def _extrapolated(nearest: EngineProfile, drift: Drift, version: Version, releases: float) -> EngineProfile:
    along = float(np.clip(releases, -TREND_RELEASES, TREND_RELEASES))
    _, scale = drift_between(*sorted((nearest.sglang_version, str(version)), key=Version))
    spread = min(abs(releases), WIDEST_RELEASES) * scale * np.array(drift.covariance)
    mean = nearest.parameters.fitted() + along * np.array(drift.mean)
    warning = (
        f"SGLang {version}: no measurements of this version; engine profile extrapolated from "
        f"{nearest.sglang_version}, {abs(releases):.0f} releases away, with a wider band"
    )
    covariance = np.array(nearest.covariance) + spread
    moved_profile = replace(nearest, parameters=nearest.parameters.moved(mean), covariance=as_matrix(covariance))
    return _unmeasured(moved_profile, version, "extrapolated", warning)


def _unmeasured(like: EngineProfile, version: Version, status: str, warning: str) -> EngineProfile:
    """Return a profile renamed to an unmeasured version, without the claims that measurements support."""
    return replace(
        like,
        name=f"sglang-{version}-{status}",
        sglang_version=str(version),
        status=status,
        relative_error=RelativeError(decode=like.relative_error.decode, prefill=like.relative_error.prefill),
        points=0,
        tpot_mape_percent=None,
        fitted_to=(),
        warnings=(warning,),
    )
