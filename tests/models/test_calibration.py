"""Calibration: it finds what the data determine, leaves what they do not, and says which is which."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from packaging.version import Version
from tests_data import SHIPPED

from hwprobe.errors import InputError
from models.engine.profile import FITTED, EngineProfile, shipped_drift, shipped_profiles
from models.engine.versions import profile_among, profile_for
from models.records.calibration import calibrate
from models.records.case import Case, expected, predict_case
from models.records.points import METRICS, Point, parse_point, read_lines
from models.records.residuals import residuals
from models.serving.uncertainty import BAND_SIGMAS
from planner.point_case import case_of

QUESTIONS = ((4, 1024, 1024), (64, 1024, 1024), (16, 8192, 1024))
FOUR = ("0.5.5", "0.5.6", "0.5.7", "0.5.12")


def asked(concurrency: int, isl: int = 1024, osl: int = 1024) -> Point:
    return Point(
        id=f"{concurrency}-{isl}-{osl}", gpu="H200", n_gpus=8, engine_version="0.5.12", tp=8, isl=isl, osl=osl,
        range_ratio=0.8, concurrency=concurrency, mem_fraction_static=0.82,
    )  # fmt: skip


def measured(truth: EngineProfile, *questions: tuple[int, int, int]) -> list[Case]:
    """Cases under the shipped profile whose measurements are what `truth` would give."""
    found = []
    for question in questions:
        case = case_of(asked(*question))
        seen = expected(replace(case, context=replace(case.context, engine=truth)))
        figures = {name: value for name in METRICS if (value := seen.figure(name)) is not None}
        found.append(replace(case, measured=figures))
    return found


def slower(**factors: float) -> EngineProfile:
    base = profile_for(Version("0.5.12"))
    changed = {name: getattr(base.parameters, name) * factor for name, factor in factors.items()}
    return replace(base, parameters=replace(base.parameters, **changed))


def test_one_point_moves_tau_alone() -> None:
    base = profile_for(Version("0.5.12"))
    found = calibrate(measured(slower(tau_us=1.3), (4, 1024, 1024)), base)
    moved = {name: getattr(found.profile.parameters, name) / getattr(base.parameters, name) for name in FITTED}
    assert moved.pop("tau_us") == pytest.approx(1.3, rel=0.05)
    assert all(factor == pytest.approx(1.0, abs=1e-9) for factor in moved.values())
    assert [item.name for item in found.parameters if item.by_data] == ["tau_us"]


def test_a_ttft_that_the_profile_cannot_give_widens_its_band() -> None:
    """One point moves launches alone; that its TTFT is three times the profile's is not forgotten."""
    base = profile_for(Version("0.5.12"))
    (case,) = measured(base, (4, 1024, 1024))
    slow = replace(case, measured={n: v * (3.0 if n.startswith("ttft") else 1.0) for n, v in case.measured.items()})
    assert calibrate([case], base).profile.relative_error.prefill == base.relative_error.prefill
    assert calibrate([slow], base).profile.relative_error.prefill > 0.8
    decode = calibrate([slow], base).profile.relative_error.decode
    assert decode < 0.1, "its decode steps are as the profile says"


def test_three_points_find_what_changed() -> None:
    truth = slower(tau_us=1.25, eta_w=0.85, eta_pf=0.9)
    found = calibrate(measured(truth, *QUESTIONS), profile_for(Version("0.5.12")))
    for name in ("tau_us", "eta_w"):
        assert getattr(found.profile.parameters, name) == pytest.approx(getattr(truth.parameters, name), rel=0.05)
    known = {item.name: item.after / item.before for item in found.parameters}
    assert known["tau_us"] < 0.5
    assert known["eta_w"] < 0.7
    # Prefill shows in one of the three only: it moves the right way, and the report does not claim more.
    before, after = profile_for(Version("0.5.12")).parameters.eta_pf, found.profile.parameters.eta_pf
    assert truth.parameters.eta_pf < after < before
    assert found.rms_decode < 0.02
    assert found.profile.status == "calibrated"
    assert all(after.after <= after.before for after in found.parameters)


def test_one_wild_point_does_not_carry_the_rest_away() -> None:
    cases = measured(slower(tau_us=1.2), *QUESTIONS, (16, 1024, 1024))
    wild = replace(cases[3], measured={name: 3.0 * value for name, value in cases[3].measured.items()})
    found = calibrate([*cases[:3], wild], profile_for(Version("0.5.12")))
    honest = calibrate(cases[:3], profile_for(Version("0.5.12")))
    assert wild.id in found.outliers
    assert found.profile.parameters.tau_us == pytest.approx(honest.profile.parameters.tau_us, rel=0.12)


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(InputError, match="nothing to calibrate from"):
        calibrate([case_of(asked(4))], profile_for(Version("0.5.12")))


@cache
def published(version: str) -> tuple[Point, ...]:
    """The published 8xH200 TP8 sweeps of one version, outliers left out."""
    points = [parse_point(line, number) for number, line in read_lines(SHIPPED)]
    return tuple(
        p for p in points
        if (p.gpu, p.n_gpus, p.engine_version, p.trust, p.role) == ("H200", 8, version, "A", "primary")
    )  # fmt: skip


def left_out(version: str) -> EngineProfile:
    others = tuple(p for p in shipped_profiles() if p.sglang_version != version and p.status == "fitted")
    return profile_among(others, shipped_drift(), Version(version))


def mape(cases: list[Case], kind: str) -> list[float]:
    found = residuals(cases, cases[0].context.engine.parameters)
    return [abs(np.expm1(x)) for x, k in zip(found.residuals, found.kinds, strict=True) if k == kind]


@pytest.mark.slow
def test_versions_left_out_are_predicted_and_three_points_suffice() -> None:
    """The bars of docs/models.md; tools/cross_validate.py fits the shared numbers again as well."""
    unseen, taught = [], []
    ttft: list[float] = []
    for version in FOUR:
        base = left_out(version)
        points = published(version)
        unseen += mape([case_of(p, engine=base) for p in points], "tpot")
        three = [next(p for p in points if (p.concurrency, p.isl, p.osl) == q) for q in QUESTIONS]
        engine = calibrate([case_of(p, engine=base) for p in three], base).profile
        rest = [case_of(p, engine=engine) for p in points if p not in three]
        taught += mape(rest, "tpot")
        ttft += mape(rest, "ttft")
    assert np.mean(unseen) <= 0.06
    assert np.mean(taught) <= 0.03
    assert np.mean(ttft) <= 0.15


@pytest.mark.slow
def test_bands_hold_what_they_say() -> None:
    inside = []
    for version in FOUR:
        base = left_out(version)
        for point in published(version):
            case = case_of(point, engine=base)
            predicted, errors = predict_case(case)
            for name, error in (("tpot_median_ms", errors.tpot), ("output_tok_s", errors.output_tok_s)):
                if name in case.measured:
                    away = abs(np.log(predicted.figure(name) / case.measured[name]))
                    inside.append(away <= BAND_SIGMAS * error)
    assert 0.80 <= np.mean(inside) <= 0.99
