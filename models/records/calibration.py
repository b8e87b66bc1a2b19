"""Calibration: move an engine profile towards measurements, only as far as they determine it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hwprobe.errors import InputError
from models.engine.profile import FITTED, EngineParameters, EngineProfile, RelativeError, as_matrix
from models.layout import Array
from models.records.case import Case
from models.records.residuals import FIGURES, Fit, residuals, rms_of_prefill

# Prior spread of one version between machines: the same sweep of one version on two dates differs by 4.6 % in decode
# times.
MACHINE_SPREAD = np.array([0.08, 0.08, 0.08, 0.20, 0.40])
# Parameters beyond FITTED that slices of several depths determine, with their spread between machines: a step's fixed
# cost.
FIXED = {"host_ms": 0.40}
# Parameters that only prefill/decode fleets determine.
OF_FLEETS = ("transfer_gb_s", "prefill_role", "decode_role")
# The probability that a drafted token is accepted, fitted like the engine's parameters, and its largest value.
ACCEPTANCE = "mtp_acceptance"
MOST_ACCEPTED = 0.99
# Times the spread of machines, tried in turn while the evidence rises: slices may run on a CPU.
WIDTHS = (4.0, 16.0, 64.0)
# Gauss-Newton: slopes are computed in the first rounds and kept afterwards, when steps are small.
ROUNDS = 5
ROUNDS_WITH_SLOPES = 2
ROUNDS_WIDE = 15
STEP = 0.02
LONGEST_MOVE = 0.4
SETTLED = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Determined:
    """How much the data said about one parameter: relative standard deviations before and after."""

    name: str
    before: float
    after: float
    value_before: float
    value_after: float

    @property
    def by_data(self) -> bool:
        """Whether the measurements at least halved the uncertainty."""
        return self.after < 0.5 * self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A calibrated profile and how the data moved it. `outliers` are ids whose residuals were discounted.

    `acceptance` is the fitted MTP acceptance, None where it was not fitted. `width` is the factor on the machine's
    spread that made the data plausible.
    """

    profile: EngineProfile
    parameters: tuple[Determined, ...]
    outliers: tuple[str, ...]
    rms_decode: float
    width: float = 1.0
    acceptance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prior:
    """The prior of the named parameters' logarithms, and which of them the data may move."""

    names: tuple[str, ...]
    middle: Array
    covariance: Array
    free: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Settled:
    """Where a fit came to rest: the place, its residuals, the covariance of the free parameters, its evidence."""

    place: Array
    fit: Fit
    covariance: Array
    log_evidence: float


def calibrate(
    cases: Sequence[Case],
    base: EngineProfile,
    spread: Array = MACHINE_SPREAD,
    further: Mapping[str, float] | None = None,
) -> Calibration:
    """Fit the FITTED parameters of `base` to the cases' measurements (maximum a posteriori, log-normal errors).

    The prior is `base` with its covariance and `spread` (relative standard deviations between machines). One measured
    point moves tau_us alone. Points on slices of different depth separate a step's fixed cost from its cost per layer:
    host_ms is fitted too, and the prior is widened as far as the data require (a CPU differs from a GPU). `further`
    names other parameters that the data may move (host_ms, dp_layer_us, ep_layer_us, ACCEPTANCE) with its spread.
    Raises InputError when no case has a figure to learn from.
    """
    usable = [case for case in cases if any(name in case.measured for names in FIGURES.values() for name in names)]
    if not usable:
        raise InputError("no point has a measured ttft, tpot or output_tok_s: there is nothing to calibrate from")
    sliced = len({case.context.arch.num_hidden_layers for case in usable}) > 1
    more = (FIXED if sliced else {}) | dict(further or {})
    names = (*FITTED, *more)
    base_covariance = np.zeros((len(names), len(names)))
    base_covariance[: len(FITTED), : len(FITTED)] = base.covariance
    machine = np.array([*spread, *more.values()])
    guess = next((case.context.acceptance for case in usable if not case.acceptance_known), MOST_ACCEPTED)
    prior = _Prior(
        names=names,
        middle=np.array([_logarithm(base.parameters, name, guess) for name in names]),
        covariance=base_covariance + np.diag(machine**2),
        free=np.array([name == "tau_us" or len(usable) > 1 for name in names]),
    )
    settled = _settle(usable, base.parameters, prior, prior.middle, ROUNDS)
    width = 1.0
    for wider in WIDTHS if sliced else ():
        widened = replace(prior, covariance=base_covariance + np.diag((wider * machine) ** 2))
        candidate = _settle(usable, base.parameters, widened, settled.place, ROUNDS_WIDE)
        if candidate.log_evidence <= settled.log_evidence:
            break
        prior, settled, width = widened, candidate, wider
    return _calibration(usable, base, prior, settled, width)


def _calibration(
    usable: Sequence[Case], base: EngineProfile, prior: _Prior, settled: _Settled, width: float
) -> Calibration:
    fit, names, size = settled.fit, prior.names, len(FITTED)
    after = prior.covariance.copy()
    after[np.ix_(prior.free, prior.free)] = settled.covariance
    decode = [z for z, kind in zip(fit.residuals, fit.kinds, strict=True) if kind in ("tpot", "output")]
    rms = math.sqrt(float(np.mean(np.square(decode)))) if decode else base.relative_error.decode
    profile = replace(
        base,
        name=f"{base.name}-calibrated",
        status="calibrated",
        parameters=_parameters(base.parameters, settled.place, names),
        covariance=as_matrix(after[:size, :size]),
        relative_error=RelativeError(
            decode=max(base.relative_error.decode, rms),
            prefill=max(base.relative_error.prefill, rms_of_prefill(fit)),
        ),
        source=f"calibrated from {base.name} with {len(usable)} measured points",
        points=len(usable),
        fitted_to=tuple(case.id for case in usable),
        warnings=tuple(warning for warning in base.warnings if base.status == "indicative"),
    )
    moved = settled.place
    return Calibration(
        profile=profile,
        parameters=tuple(
            Determined(
                name=name,
                before=math.sqrt(prior.covariance[i, i]),
                after=math.sqrt(after[i, i]),
                value_before=float(np.exp(prior.middle[i])),
                value_after=float(np.exp(moved[i])),
            )
            for i, name in enumerate(names)
        ),
        outliers=tuple(sorted({name for name, w in zip(fit.owners, fit.weights, strict=True) if w < 1.0})),
        rms_decode=rms,
        width=width,
        acceptance=_acceptance(settled.place, names),
    )


def _settle(cases: Sequence[Case], like: EngineParameters, prior: _Prior, start: Array, rounds: int) -> _Settled:
    """Gauss-Newton with numerical slopes from `start`, towards the data and the prior's middle."""
    names, free, place = prior.names, prior.free, start.copy()
    inside = prior.covariance[np.ix_(free, free)]
    precision = np.linalg.inv(inside)
    fit, slopes = linearised(cases, like, place, free, names)
    for round_number in range(1, rounds + 1):
        weight = fit.weights / fit.scatter**2
        gradient = slopes.T @ (weight * fit.residuals) + precision @ (place - prior.middle)[free]
        move = -np.linalg.solve(slopes.T @ (weight[:, None] * slopes) + precision, gradient)
        place[free] += np.clip(move, -LONGEST_MOVE, LONGEST_MOVE)
        if round_number < ROUNDS_WITH_SLOPES or rounds > ROUNDS:
            fit, slopes = linearised(cases, like, place, free, names)
        else:
            fit = _fit_at(cases, like, place, names)
        if float(np.max(np.abs(move))) < SETTLED:
            break
    weight = fit.weights / fit.scatter**2
    information = slopes.T @ (weight[:, None] * slopes) + precision
    away = (place - prior.middle)[free]
    log_evidence = -fit.loss - 0.5 * float(
        away @ precision @ away + np.linalg.slogdet(inside)[1] + np.linalg.slogdet(information)[1]
    )
    return _Settled(place, fit, np.linalg.inv(information).astype(np.float64), log_evidence)


def linearised(
    cases: Sequence[Case],
    like: EngineParameters,
    place: Array,
    free: npt.NDArray[np.bool_],
    names: tuple[str, ...] = FITTED,
) -> tuple[Fit, Array]:
    """Return residuals at a place and their slopes along the free parameters."""
    fit = _fit_at(cases, like, place, names)
    unique = len({case.id for case in cases}) == len(cases)  # rows are found by their case's id
    columns = []
    for index in np.flatnonzero(free):
        aside = place.copy()
        aside[index] += STEP
        touched = [case for case in cases if not unique or _depends(case, names[index])]
        column = np.zeros(len(fit.residuals))
        if touched:
            own = {case.id for case in touched}
            rows = np.array([owner in own for owner in fit.owners])
            column[rows] = (_fit_at(touched, like, aside, names).residuals - fit.residuals[rows]) / STEP
        columns.append(column)
    return fit, np.array(columns).T.reshape(len(fit.residuals), int(free.sum()))


def _depends(case: Case, name: str) -> bool:
    """Whether a parameter can change the case's prediction: replays that cannot differ are skipped."""
    if name == ACCEPTANCE:
        return not case.acceptance_known
    if name in OF_FLEETS:
        return case.prefill is not None
    if case.prefill is not None:
        return True  # the prefill servers have a layout of their own
    if name == "dp_layer_us":
        return case.config.attn_dp_size > 1
    if name == "ep_layer_us":
        return case.config.ep_size > 1
    return name != "first_wave_s" or case.run.kind == "serving"


def _fit_at(cases: Sequence[Case], like: EngineParameters, place: Array, names: tuple[str, ...]) -> Fit:
    acceptance = _acceptance(place, names)
    if acceptance is not None:
        cases = [case.with_acceptance(acceptance) for case in cases]
    return residuals(cases, _parameters(like, place, names))


def _logarithm(parameters: EngineParameters, name: str, acceptance: float) -> float:
    return math.log(acceptance) if name == ACCEPTANCE else float(parameters.fitted((name,))[0])


def _parameters(like: EngineParameters, place: Array, names: tuple[str, ...]) -> EngineParameters:
    own = [index for index, name in enumerate(names) if name != ACCEPTANCE]
    return like.moved(place[own], tuple(names[index] for index in own))


def _acceptance(place: Array, names: tuple[str, ...]) -> float | None:
    return min(MOST_ACCEPTED, math.exp(place[names.index(ACCEPTANCE)])) if ACCEPTANCE in names else None
