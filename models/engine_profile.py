"""EngineProfile: the few fitted numbers of one SGLang version on one GPU family."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from packaging.version import Version

from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json, read_bytes, write_atomic

PROFILE_SCHEMA = 1
# What a version nobody measured may differ by, per release away from the nearest measured one.
# Measured versions differ from their neighbours by 8-12 % (published sweeps 0.5.5 to 0.5.12).
DRIFT_PER_RELEASE = 0.015
DRIFT_LIMIT = 0.20

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParameters:
    """The numbers the equations take from an engine build.

    tau_us: exposed time per CUDA-graph node; eta_w: fraction of HBM bandwidth that weight streaming
    reaches; eta_pf: prefill matrix rate relative to the kernel model; t_pf0_ms: CPU launch floor of a
    prefill pass; eta_kv: HBM fraction of the KV stream; mla_floor_us: fixed cost of an MLA decode
    kernel; token_us: per token and layer; host_ms: scheduler time not overlapped; ep_layer_us and
    dp_layer_us: dispatch, permutation and rank synchronisation per MoE layer under EP and attention DP.
    """

    tau_us: Positive
    eta_w: Positive
    eta_pf: Positive
    t_pf0_ms: Positive
    eta_kv: Positive
    mla_floor_us: Positive
    token_us: NotNegative
    host_ms: NotNegative
    ep_layer_us: NotNegative
    dp_layer_us: NotNegative


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeError:
    """Expected relative error (about one standard deviation) of decode and prefill times."""

    decode: Positive
    prefill: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Fitted parameters, how far to trust them, and what they were fitted to.

    `default_sigma` is the log-normal spread of expert popularity assumed when the workload says
    nothing (random tokens about 1.2, natural text about 0.45).
    """

    name: str
    sglang_version: str
    gpu_family: str
    status: str
    parameters: EngineParameters
    relative_error: RelativeError
    source: str
    points: int = 0
    tpot_mape_percent: float | None = None
    default_sigma: NotNegative = 0.8
    warnings: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA


def load_engine_profile(path: Path) -> EngineProfile:
    """Read a profile file. Raises InputError naming the field that is wrong."""
    profile = decode_json(read_bytes(path, "engine profile"), EngineProfile, str(path))
    if profile.schema_version > PROFILE_SCHEMA:
        raise InputError(f"{path}: schema version {profile.schema_version} is newer than this sgtune reads")
    return profile


def save_engine_profile(profile: EngineProfile, path: Path) -> None:
    """Write a profile file atomically."""
    write_atomic(path, encode_json(profile) + "\n")


@cache
def shipped_profiles() -> tuple[EngineProfile, ...]:
    """Return the shipped profiles, oldest version first."""
    folder = files("models").joinpath("profiles")
    found = [
        decode_json(item.read_bytes(), EngineProfile, item.name)
        for item in folder.iterdir()
        if item.name.endswith(".json")
    ]
    return tuple(sorted(found, key=lambda profile: Version(profile.sglang_version)))


def profile_for(version: Version) -> EngineProfile:
    """Return the profile of an SGLang version: shipped, interpolated, or extrapolated (and says which)."""
    shipped = shipped_profiles()
    positions = [release_number(Version(profile.sglang_version)) for profile in shipped]
    wanted = release_number(version)
    index = bisect_left(positions, wanted)
    if index < len(shipped) and positions[index] == wanted:
        return shipped[index]
    if index == 0:
        return _extrapolated(shipped[0], version, positions[0] - wanted)
    if index == len(shipped):
        return _extrapolated(shipped[-1], version, wanted - positions[-1])
    older, newer = shipped[index - 1], shipped[index]
    share = (wanted - positions[index - 1]) / (positions[index] - positions[index - 1])
    gap = min(wanted - positions[index - 1], positions[index] - wanted)
    said = f"SGLang {version}: engine profile interpolated between {older.sglang_version} and {newer.sglang_version}"
    return replace(
        older,
        name=f"sglang-{version}-interpolated",
        sglang_version=str(version),
        status="interpolated",
        parameters=_blend(older.parameters, newer.parameters, share),
        relative_error=_wider(_larger(older.relative_error, newer.relative_error), gap),
        points=0,
        tpot_mape_percent=None,
        warnings=(said,),
    )


def release_number(version: Version) -> float:
    """Place a version on a line of releases: 0.4.10 is followed by 0.5.0; post releases stay in place."""
    major, minor, micro = (*version.release, 0, 0)[:3]
    last_of_minor = {4: 10}
    before = sum(last_of_minor.get(m, 0) + 1 for m in range(4, minor))
    return before + micro + (1000.0 * major)


def _extrapolated(nearest: EngineProfile, version: Version, releases: float) -> EngineProfile:
    said = (
        f"SGLang {version}: no measurements of this version; using the profile of {nearest.sglang_version}, "
        f"{releases:.0f} releases away, with a wider band"
    )
    return replace(
        nearest,
        name=f"sglang-{version}-extrapolated",
        sglang_version=str(version),
        status="extrapolated",
        relative_error=_wider(nearest.relative_error, releases),
        points=0,
        tpot_mape_percent=None,
        warnings=(said,),
    )


def _blend(older: EngineParameters, newer: EngineParameters, share: float) -> EngineParameters:
    """Interpolate geometrically where both are positive: the parameters are rates and times."""

    def between(a: float, b: float) -> float:
        return math.exp((1 - share) * math.log(a) + share * math.log(b)) if a > 0 and b > 0 else a + share * (b - a)

    names = [field.name for field in fields(EngineParameters)]
    return EngineParameters(**{name: between(getattr(older, name), getattr(newer, name)) for name in names})


def _larger(a: RelativeError, b: RelativeError) -> RelativeError:
    return RelativeError(decode=max(a.decode, b.decode), prefill=max(a.prefill, b.prefill))


def _wider(error: RelativeError, releases: float) -> RelativeError:
    drift = min(DRIFT_LIMIT, DRIFT_PER_RELEASE * releases)
    return RelativeError(decode=math.hypot(error.decode, drift), prefill=math.hypot(error.prefill, drift))
