"""EngineProfile: the few fitted numbers of one SGLang version on one GPU family, with their covariance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from packaging.version import Version

from hwprobe.bounds import ENGINE, check_fields
from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json, read_bytes, write_atomic
from models.layout import Array

PROFILE_SCHEMA = 3
# Parameters fitted to each version; all versions share the others.
FITTED = ("tau_us", "eta_w", "eta_pf", "t_pf0_ms", "first_wave_s")

# GPU families with engine profiles of their own. A release's gain on one does not carry over to another: from 0.5.2 to
# 0.5.12 a decode step of four users halved on MI355X and did not change on B200.
HOPPER, BLACKWELL, CDNA3, CDNA4 = FAMILIES = ("hopper", "blackwell", "cdna3", "cdna4")
# Marks of a family: the start of the compute capability, or of the name where that is missing.
FAMILY_MARKS = {
    "9.": HOPPER, "10.": BLACKWELL, "MI300": CDNA3, "MI308": CDNA3, "MI325": CDNA3, "MI350": CDNA4, "MI355": CDNA4,
}  # fmt: skip

# What a KV transfer is taken to reach where nothing was measured: one InfiniBand NDR adapter
# a GPU at half its line rate (reports call hundreds of MB/s a rank normal on untuned fabrics).
ASSUMED_TRANSFER_GB_S = 25.0

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Matrix = tuple[tuple[float, ...], ...]


def family_of(name: str, compute_capability: str | None) -> str:
    """Return the family of a GPU: one of FAMILIES, or "other" where no profile was ever fitted."""
    words = [compute_capability or "", *name.upper().split()]
    return next((family for mark, family in FAMILY_MARKS.items() for word in words if word.startswith(mark)), "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParameters:
    """The numbers the equations take from an engine build.

    tau_us: exposed time per CUDA-graph node; eta_w: fraction of HBM bandwidth that weight streaming reaches; eta_pf:
    prefill matrix rate relative to the kernel model; t_pf0_ms: CPU launch floor of a prefill pass of R1 (a slice has
    its share by kernels); eta_pa: rate of causal attention in prefill; eta_kv: HBM fraction of the KV stream;
    mla_floor_us: fixed cost of an MLA decode kernel; token_us: per token and layer; host_ms: scheduler time not
    overlapped; ep_layer_us and dp_layer_us: dispatch, permutation and rank synchronisation per MoE layer under EP and
    attention DP; internode_us: latency of one small all-reduce over several nodes; first_wave_s: wait of a benchmark's
    first requests in addition to their prefill; mtp_step_ms: time that drafting and verifying add to a step in addition
    to the model's kernels, under overlap scheduling (spec v2); mtp_host_ms and mtp_request_us: the same without it
    (spec v1), per step and running request; transfer_gb_s: rate of one request's KV cache between prefill and decode
    servers (1e9 bytes/s); prefill_role and decode_role: speed of servers in these roles relative to the equations;
    ep_prefill: rows of the busiest of eight EP ranks over the mean, in prefill of random prompts.
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
    eta_pa: Positive = 0.8
    internode_us: Positive = 46.0
    mtp_step_ms: Positive = 3.0
    mtp_host_ms: Positive = 3.0
    mtp_request_us: Positive = 60.0
    first_wave_s: Positive = 1.0
    ep_prefill: Positive = 2.2
    transfer_gb_s: Positive = ASSUMED_TRANSFER_GB_S
    prefill_role: Positive = 1.0
    decode_role: Positive = 1.0

    def fitted(self, names: tuple[str, ...] = FITTED) -> Array:
        """Return the natural logarithms of the named parameters."""
        return np.log([max(getattr(self, name), 1e-9) for name in names])

    def moved(self, logarithms: Array, names: tuple[str, ...] = FITTED) -> EngineParameters:
        """Return the parameters with the named ones at these natural logarithms."""
        return replace(self, **{name: float(np.exp(x)) for name, x in zip(names, logarithms, strict=True)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeError:
    """One standard deviation of the relative error that fitted parameters leave in decode and prefill times: the
    equations' own error and the day-to-day scatter of one sweep.
    """

    decode: Positive
    prefill: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Fitted parameters, how far to trust them, and what they were fitted to.

    `covariance` is that of the natural logarithms of FITTED. `sigma` is the log-normal spread of expert popularity;
    `random_independence` the share of tokens that choose their experts on their own when prompts are random tokens (1
    for natural text); `mtp_acceptance` the probability that a drafted token is accepted, where it was measured.
    `fitted_to` names the measurements.
    """

    name: str
    sglang_version: str
    gpu_family: str
    status: str
    parameters: EngineParameters
    covariance: Matrix
    relative_error: RelativeError
    source: str
    sigma: NotNegative
    random_independence: Annotated[float, Meta(ge=0, le=1)]
    mtp_acceptance: Annotated[float, Meta(ge=0, lt=1)] | None = None
    points: int = 0
    tpot_mape_percent: float | None = None
    fitted_to: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How FITTED parameters change from one SGLang release to the next, in natural logarithms.

    `mean` is the trend per release, `covariance` the variance that one release adds around it.
    """

    mean: tuple[float, ...]
    covariance: Matrix
    source: str


def load_engine_profile(path: Path) -> EngineProfile:
    """Read a profile file. Raises InputError naming the field that is wrong."""
    return checked(decode_json(read_bytes(path, "engine profile"), EngineProfile, str(path)), str(path))


def checked(profile: EngineProfile, where: str) -> EngineProfile:
    """Return the profile if this sgtune can use it. Raises InputError otherwise."""
    if profile.schema_version != PROFILE_SCHEMA:
        raise InputError(
            f"{where}: schema version {profile.schema_version}, this sgtune reads {PROFILE_SCHEMA}; "
            "make the profile again with sgtune calibrate"
        )
    size = len(FITTED)
    if len(profile.covariance) != size or any(len(row) != size for row in profile.covariance):
        raise InputError(f"{where}: covariance must be {size} x {size}, in the order {', '.join(FITTED)}")
    check_fields(profile.parameters, ENGINE, where, "parameters.")
    check_fields(profile.relative_error, ENGINE, where, "relative_error.")
    check_fields(profile, ENGINE, where)
    return profile


def save_engine_profile(profile: EngineProfile, path: Path) -> None:
    """Write a profile file atomically."""
    write_atomic(path, encode_json(profile) + "\n")


@cache
def shipped_profiles(family: str = HOPPER) -> tuple[EngineProfile, ...]:
    """Return the shipped profiles of a GPU family, oldest version first."""
    folder = files("models").joinpath("profiles", family)
    profiles = [
        checked(decode_json(item.read_bytes(), EngineProfile, item.name), item.name)
        for item in folder.iterdir()
        if item.name.startswith("sglang-")
    ]
    return tuple(sorted(profiles, key=lambda profile: Version(profile.sglang_version)))


@cache
def shipped_drift(family: str = HOPPER) -> Drift:
    """Return the drift between versions on a GPU family."""
    return decode_json(files("models").joinpath("profiles", family, "drift.json").read_bytes(), Drift, "drift.json")


def as_matrix(values: Array) -> Matrix:
    """Return a square array as nested tuples, rounded: profiles are read by people."""
    return tuple(tuple(round(float(x), 6) for x in row) for row in values)
