"""Shipped profiles, and versions nobody measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from hwprobe.errors import InputError
from models.engine.profile import (
    EngineProfile,
    family_of,
    load_engine_profile,
    save_engine_profile,
    shipped_profiles,
)
from models.engine.versions import profile_for, release_number
from models.version import parse_version


@pytest.mark.parametrize(
    ("family", "versions"),
    [
        ("hopper", "0.4.3 0.4.5 0.4.6 0.4.8 0.5.2 0.5.5 0.5.6 0.5.7 0.5.8 0.5.12"),
        ("blackwell", "0.4.7 0.5.5 0.5.6 0.5.8 0.5.9 0.5.12"),
        ("cdna3", "0.4.3 0.5.2 0.5.5 0.5.7 0.5.8 0.5.9"),
        ("cdna4", "0.5.2 0.5.5 0.5.6 0.5.8 0.5.12"),
    ],
)
def test_every_family_ships_the_releases_that_were_measured_on_it(family: str, versions: str) -> None:
    shipped = shipped_profiles(family)
    assert [profile.sglang_version for profile in shipped] == versions.split()
    assert {profile.gpu_family for profile in shipped} == {family}


@pytest.mark.parametrize(
    ("name", "capability", "family"),
    [
        ("NVIDIA H20-3e", "9.0", "hopper"),
        ("NVIDIA B300", "10.3", "blackwell"),
        ("AMD Instinct MI325X", None, "cdna3"),
        ("AMD Instinct MI355X", None, "cdna4"),
        ("NVIDIA A100-SXM4-80GB", "8.0", "other"),
    ],
)
def test_a_gpu_belongs_to_the_family_whose_profiles_speak_for_it(name: str, capability: str, family: str) -> None:
    assert family_of(name, capability) == family


def test_exact_version_and_its_posts() -> None:
    assert profile_for(Version("0.5.7")).name == "sglang-0.5.7-hopper"
    assert profile_for(Version("0.4.5.post3")).name == "sglang-0.4.5-hopper"


def variance(profile: EngineProfile) -> float:
    """How little is known of the parameters: the trace of their covariance."""
    return float(np.trace(np.array(profile.covariance)))


def test_between_two_versions_is_interpolated_and_says_so() -> None:
    older, between, newer = (profile_for(Version(v)) for v in ("0.5.8", "0.5.10", "0.5.12"))
    assert between.status == "interpolated"
    assert newer.parameters.tau_us < between.parameters.tau_us < older.parameters.tau_us
    assert "interpolated between 0.5.8 and 0.5.12" in between.warnings[0]
    assert variance(between) > max(variance(older), variance(newer))


def test_beyond_the_last_is_extrapolated_with_a_wider_band() -> None:
    last, near, far = (profile_for(Version(v)) for v in ("0.5.12", "0.5.13", "0.5.23"))
    assert variance(last) < variance(near) < variance(far)
    assert "no measurements of this version" in far.warnings[0]


def test_a_release_after_all_that_is_known_is_extrapolated_and_says_so() -> None:
    """0.6.0 stands behind 0.5.23, not among the releases that were measured."""
    unknown = profile_for(Version("0.6.0"))
    assert unknown.status == "extrapolated"
    assert "extrapolated from 0.5.12" in unknown.warnings[0]
    assert variance(unknown) >= variance(profile_for(Version("0.5.23")))


def test_releases_follow_each_other() -> None:
    line = [
        release_number(Version(v)) for v in ("0.4.3", "0.4.9", "0.4.10", "0.5.0", "0.5.1", "0.5.23", "0.6.0", "0.6.1")
    ]
    assert line == sorted(line)
    assert line[3] - line[2] == 1


def test_file_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = profile_for(Version("0.5.12"))
    save_engine_profile(profile, path)
    assert load_engine_profile(path) == profile
    path.write_text(re.sub(r'"tau_us": ', '"tau_us": -', path.read_text()))
    with pytest.raises(InputError, match=r"parameters.tau_us"):
        load_engine_profile(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nightly", "is not an SGLang version"),
        ("0.3.0", "older than"),
        pytest.param("9" * 400, "is not an SGLang version", id="no float holds it"),
        pytest.param("9" * 5000, r"\(5000 characters\)", id="no int() reads it"),
        pytest.param("0.5.3.post" + "9" * 40, "is not an SGLang version", id="post release"),
        pytest.param("1!0.5.3", "is not an SGLang version", id="epoch"),
    ],
)
def test_versions_that_cannot_be(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_version(text)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: re.sub(r'"schema_version": \d+', '"schema_version": 1', text), "schema version 1"),
        (lambda text: re.sub(r'("covariance": \[\s*)\[[^]]*\],', r"\1", text), "covariance must be 5 x 5"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, change: Callable[[str], str], complaint: str) -> None:
    path = tmp_path / "profile.json"
    save_engine_profile(profile_for(Version("0.5.12")), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=complaint):
        load_engine_profile(path)
