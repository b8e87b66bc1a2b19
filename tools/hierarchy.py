"""The engine profiles of one GPU family, fitted together: what the family shares, and a walk from release to release.

Unknowns of a family, in natural logarithms: SHARED numbers, a trend per release, and FITTED numbers of every release.
A release starts where the one before it ended, plus the trend, give or take the drift: so a release with one record
is moved by it as far as it says something, and the rest comes from its neighbours. Gauss-Newton, Huber weights.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from fit_records import Record, Release

from models.engine.profile import FITTED, Drift, EngineParameters, EngineProfile, RelativeError, as_matrix
from models.engine.versions import drift_between
from models.layout import Array
from models.records.case import Case
from models.records.residuals import Fit, residuals

# Where every fit starts, and how wide its prior is (relative standard deviations, in the order of FITTED).
START = EngineParameters(
    tau_us=3.5, eta_w=0.75, eta_pf=0.8, t_pf0_ms=80.0, eta_kv=0.86, mla_floor_us=9.0, token_us=0.3, host_ms=0.5,
    ep_layer_us=85.0, dp_layer_us=30.0, first_wave_s=1.0, mtp_step_ms=3.0, mtp_host_ms=0.7, mtp_request_us=15.0,
)  # fmt: skip
WIDE = np.array([1.0, 0.3, 0.5, 0.7, 0.5])
# What the releases of a family share: one relative standard deviation of the prior around START.
SHARED = {
    "eta_kv": 0.15, "eta_pa": 0.5, "internode_us": 0.7, "token_us": 0.6, "ep_layer_us": 0.6, "dp_layer_us": 0.8,
    "mtp_step_ms": 0.7, "mtp_host_ms": 0.5, "mtp_request_us": 0.5, "ep_prefill": 0.15,
}  # fmt: skip
# Where the walk of a family starts to look; the prior stays START, so this saves rounds and changes nothing.
FIRST_GUESS = {
    "hopper": np.log([5.0, 0.7, 0.6, 100.0, 1.2]), "blackwell": np.log([3.4, 0.7, 0.4, 75.0, 0.6]),
    "cdna3": np.log([13.0, 0.6, 0.3, 85.0, 3.0]), "cdna4": np.log([5.0, 0.85, 0.5, 63.0, 4.0]),
}  # fmt: skip
# What the workload has of its own, whatever the machine; fitted with the family whose records are richest (Hopper).
# The third is not the workload's: how much slower the decode servers of fleets run than servers alone.
WORKLOAD_START, WORKLOAD_SPREAD = np.array([0.45, math.log(0.5), 0.0]), np.array([0.2, 0.5, 0.15])
COMMON = len(WORKLOAD_START)
# Of one release: the trend's prior around none, and the drift beside it where few steps are known (they count four).
TREND_SPREAD = np.array([0.08, 0.03, 0.03, 0.04, 0.05])
DRIFT_PRIOR = np.diag(np.square([0.06, 0.05, 0.05, 0.10, 0.25]))
DRIFT_PRIOR_STEPS = 4.0
MOST_ROUNDS, SETTLED = 10, 0.005
STEP, LONGEST_MOVE = 0.02, 0.6
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """Spread of expert popularity, the share of random tokens that choose on their own; `fleet` is what a decode
    step in a fleet takes beside one of a server alone, as a logarithm: fitted to be left out."""

    sigma: float
    random_independence: float
    fleet: float = 0.0


@dataclass(frozen=True, slots=True)
class Block:
    """The residuals of one release's records at some place, and their slopes along every unknown of the release."""

    fit: Fit
    slopes: Array  # columns: SHARED, then the workload's two, then FITTED


@dataclass(slots=True)
class Family:
    """One family under way: its records by release, and where its unknowns are."""

    name: str
    records: dict[Release, list[Record]]
    workload: Workload
    frees_workload: bool
    shared: Array = field(default_factory=lambda: START.fitted(tuple(SHARED)))
    trend: Array = field(default_factory=lambda: np.zeros(len(FITTED)))
    own: dict[Release, Array] = field(default_factory=dict)
    drift: Array = field(default_factory=lambda: DRIFT_PRIOR.copy())
    blocks: dict[Release, Block] = field(default_factory=dict)
    covariance: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def releases(self) -> list[Release]:
        return sorted(self.records, key=lambda release: release.place)

    def parameters(self, release: Release) -> EngineParameters:
        """Return the engine parameters of a release where the fit stands."""
        return START.moved(self.shared, tuple(SHARED)).moved(self.own[release])


def fitted(name: str, records: dict[Release, list[Record]], workload: Workload, *, frees_workload: bool) -> Family:
    """Fit a family from scratch."""
    family = Family(name, records, workload, frees_workload)
    family.own = {release: FIRST_GUESS[name].copy() for release in family.releases}
    before = math.inf
    for round_number in range(MOST_ROUNDS):
        for release in family.releases:
            _measure(family, release)
        moved = _solve(family, family.releases)
        family.drift = _drift(family)
        loss = sum(block.fit.loss for block in family.blocks.values())
        print(f"  {name} round {round_number + 1}: loss {loss:.1f}, largest move {moved:.3f}", file=sys.stderr)
        if before - loss < SETTLED * loss:
            break
        before = loss
    return family


def without(family: Family, left_out: Release) -> Family:
    """Return the family as it would be without the records of one release: from the slopes of the whole fit.

    Nothing of the release is in it: its rows are gone, and the others' are moved to where they now pull.
    """
    other_records = {release: records for release, records in family.records.items() if release != left_out}
    other = replace(
        family,
        records=other_records,
        own={r: family.own[r] for r in other_records},
        blocks={r: family.blocks[r] for r in other_records},
    )
    for _ in range(2):
        before = {r: (other.shared.copy(), other.own[r].copy(), other.workload) for r in other_records}
        _solve(other, other.releases)
        other.drift = _drift(other)
        other.blocks = {r: _shifted(other, r, *before[r]) for r in other_records}
    return other


def _shifted(family: Family, release: Release, shared: Array, own: Array, workload: Workload) -> Block:
    """Return a block moved along its slopes to where the family now stands."""
    block = family.blocks[release]
    away = np.concatenate(
        [family.shared - shared, _place(family.workload) - _place(workload), family.own[release] - own]
    )
    return replace(block, fit=replace(block.fit, residuals=block.fit.residuals + block.slopes @ away))


def profile_of(family: Family, release: Release) -> EngineProfile:
    """Return an unrounded profile of a release where the fit stands."""
    return _engine(family, release, family.parameters(release), family.workload)


def covariance_of(family: Family, release: Release) -> Array:
    """Return the covariance of a release's FITTED numbers."""
    mine = _columns(family, release)
    return family.covariance[np.ix_(mine, mine)]


def drift_file(family: Family) -> Drift:
    """Return trend and drift as they are shipped."""
    return Drift(
        mean=tuple(round(float(x), 5) for x in family.trend),
        covariance=as_matrix(family.drift),
        source="steps between the fitted versions " + ", ".join(release.version for release in family.releases),
    )


def _place(workload: Workload) -> Array:
    return np.array([workload.sigma, math.log(workload.random_independence), workload.fleet])


def _workload(place: Array) -> Workload:
    sigma, independence, fleet = place.tolist()
    return Workload(sigma=max(0.0, sigma), random_independence=min(1.0, math.exp(independence)), fleet=fleet)


def _engine(family: Family, release: Release, parameters: EngineParameters, workload: Workload) -> EngineProfile:
    return EngineProfile(
        name=f"sglang-{release.version}-{release.family}",
        sglang_version=release.version,
        gpu_family=release.family,
        status="fitted",
        parameters=parameters,
        covariance=as_matrix(np.zeros((len(FITTED), len(FITTED)))),
        relative_error=RelativeError(decode=0.02, prefill=0.12),
        sigma=workload.sigma,
        random_independence=workload.random_independence,
        source="",
    )


def _cases(family: Family, release: Release, workload: Workload) -> list[Case]:
    engine = _engine(family, release, family.parameters(release), workload)
    return [record.case(engine) for record in family.records[release]]


def _measure(family: Family, release: Release) -> None:
    """Take the residuals of a release where the fit stands, and their slopes."""
    parameters = family.parameters(release)
    cases = _cases(family, release, family.workload)
    fit = residuals(cases, parameters)
    fit = replace(fit, residuals=fit.residuals + family.workload.fleet * _of_fleets(fit))
    fleet = family.workload.fleet
    columns = [_slope(cases, parameters, name, fit, fleet) for name in SHARED]
    columns += [_workload_slope(family, release, place, fit) for place in range(COMMON)]
    columns += [_slope(cases, parameters, name, fit, fleet) for name in FITTED]
    family.blocks[release] = Block(fit, np.array(columns).T)


def _slope(cases: list[Case], parameters: EngineParameters, name: str, fit: Fit, fleet: float) -> Array:
    """Slopes of all residuals along one parameter; cases it cannot touch are not replayed again."""
    touched = [case for case in cases if _touches(name, case)]
    slopes = np.zeros(len(fit.residuals))
    if not touched:
        return slopes
    at = parameters.fitted((name,))
    aside = residuals(touched, parameters.moved(at + STEP, (name,)))
    owners = {case.id for case in touched}
    rows = [row for row, owner in enumerate(fit.owners) if owner in owners]
    moved = aside.residuals + fleet * _of_fleets(aside)
    slopes[rows] = (moved - fit.residuals[rows]) / STEP
    return slopes


def _touches(name: str, case: Case) -> bool:
    config = case.config
    if name.startswith("mtp_"):
        return config.speculative is not None
    if name == "internode_us":
        return config.nnodes > 1
    if name == "ep_layer_us":
        return config.ep_size > 1
    if name == "ep_prefill":
        prefills = case.run.kind != "decode_step" and case.context.independence < 1.0
        return prefills and config.ep_size > 1
    if name == "dp_layer_us":
        return config.attn_dp_size > 1 and config.ep_size == 1
    return case.run.kind != "decode_step" or name not in ("eta_pf", "eta_pa", "t_pf0_ms", "first_wave_s")


def _workload_slope(family: Family, release: Release, index: int, fit: Fit) -> Array:
    if index == 2:
        return _of_fleets(fit)
    if not family.frees_workload:
        return np.zeros(len(fit.residuals))
    place = _place(family.workload)
    place[index] += 0.05
    aside = residuals(_cases(family, release, _workload(place)), family.parameters(release))
    return (aside.residuals + family.workload.fleet * _of_fleets(aside) - fit.residuals) / 0.05


def _of_fleets(fit: Fit) -> Array:
    """1 for the residuals that are decode steps of fleets, else 0."""
    return np.array([float(owner.endswith("-decode")) for owner in fit.owners])


def _columns(family: Family, release: Release) -> list[int]:
    first = len(SHARED) + COMMON + len(FITTED) * (1 + family.releases.index(release))
    return list(range(first, first + len(FITTED)))


def _solve(family: Family, releases: Sequence[Release]) -> float:
    """Move all unknowns of a family one Gauss-Newton step; return the largest move."""
    shared, size = len(SHARED), len(FITTED)
    total = shared + COMMON + size * (1 + len(releases))
    matrix, right = np.zeros((total, total)), np.zeros(total)

    def pull(columns: Sequence[int], rows: Array, values: Array) -> None:
        """Add rows of unit variance: rows @ (move of columns) should be -values."""
        matrix[np.ix_(columns, columns)] += rows.T @ rows
        right[list(columns)] += rows.T @ values

    trend = list(range(shared + COMMON, shared + COMMON + size))
    spread = np.array(list(SHARED.values()))
    pull(range(shared), np.diag(1.0 / spread), (family.shared - START.fitted(tuple(SHARED))) / spread)
    prior_spread, away = WORKLOAD_SPREAD.copy(), _place(family.workload) - WORKLOAD_START
    if not family.frees_workload:
        prior_spread[:2], away[:2] = 1e-6, 0.0
    pull(range(shared, shared + COMMON), np.diag(1.0 / prior_spread), away / prior_spread)
    pull(trend, np.diag(1.0 / TREND_SPREAD), family.trend / TREND_SPREAD)
    for number, release in enumerate(releases):
        mine = _columns(family, release)
        if number == 0:
            pull(mine, np.diag(1.0 / WIDE), (family.own[release] - START.fitted()) / WIDE)
        else:
            _walk(family, releases[number - 1], release, trend, pull)
        block = family.blocks[release]
        weight = np.sqrt(block.fit.weights) / block.fit.scatter
        pull([*range(shared + COMMON), *mine], weight[:, None] * block.slopes, weight * block.fit.residuals)
    family.covariance = np.linalg.inv(matrix)
    move = np.clip(-family.covariance @ right, -LONGEST_MOVE, LONGEST_MOVE)
    family.shared = family.shared + move[:shared]
    family.workload = _workload(_place(family.workload) + move[shared : shared + COMMON])
    family.trend = family.trend + move[trend]
    for release in releases:
        family.own[release] = family.own[release] + move[_columns(family, release)]
    return float(np.max(np.abs(move)))


def _walk(family: Family, before: Release, after: Release, trend: list[int], pull: object) -> None:
    gap, scale = drift_between(before.version, after.version)
    whiten = np.linalg.cholesky(np.linalg.inv(gap * scale * family.drift)).T
    one = np.eye(len(FITTED))
    rows = whiten @ np.hstack([-one, one, -gap * one])
    away = family.own[after] - family.own[before] - gap * family.trend
    pull([*_columns(family, before), *_columns(family, after), *trend], rows, whiten @ away)  # type: ignore[operator]


def _drift(family: Family) -> Array:
    """Variance per release around the trend: the family's steps, and a prior that counts as a few of them."""
    total, count = DRIFT_PRIOR_STEPS * DRIFT_PRIOR, DRIFT_PRIOR_STEPS
    releases = family.releases
    for before, after in pairwise(releases):
        gap, scale = drift_between(before.version, after.version)
        away = family.own[after] - family.own[before] - gap * family.trend
        total, count = total + np.outer(away, away) / (gap * scale), count + 1.0
    return total / count
