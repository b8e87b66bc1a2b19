"""Published runs of other checkpoints: records with sources, kept out of every profile, a third out of every fit."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests_data import SHIPPED

from models.costs.weight_kernels import SHARES, SPARSE
from models.records.points import Point, parse_point, read_lines

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "models" / "data" / "checkpoint_points.jsonl"


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return [parse_point(line, number) for number, line in read_lines(RECORDS)]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "checkpoint_errors.py"))


def test_every_record_names_its_checkpoint_and_source(points: list[Point]) -> None:
    assert len(points) >= 25
    assert len({point.id for point in points}) == len(points)
    for point in points:
        assert point.measured
        assert point.extra["model"]
        assert point.extra["url"].startswith("https://")


def test_no_profile_is_fitted_to_them(points: list[Point]) -> None:
    fitted = {parse_point(line, number).id for number, line in read_lines(SHIPPED)}
    assert not fitted & {point.id for point in points}


def test_what_has_no_load_is_not_scored_and_refusals_are_named(points: list[Point], tool: dict[str, Any]) -> None:
    few = [point for point in points if point.id in ("c014", "c050", "c062")]
    lines, refused = tool["score"](few)
    assert [line.point.id for line in lines] == ["c014"]
    assert list(refused.values()) == [["c062"]]


def test_the_bands_of_every_kind_hold_on_what_no_fit_has_seen(points: list[Point], tool: dict[str, Any]) -> None:
    lines, _ = tool["score"](point for point in points if point.id not in tool["fitted_records"]())
    by_kind: dict[str, list[bool]] = {}
    for line in lines:
        by_kind.setdefault(line.kind, []).extend(figure.inside for figure in line.figures.values())
    assert len(by_kind) >= 7
    for kind, inside in by_kind.items():
        assert sum(inside) >= 0.9 * len(inside), kind
    rows = tool["table"](lines)
    assert rows[-1].startswith("all")


def test_a_third_of_every_fitted_kernel_was_left_out() -> None:
    fitted = [shares for shares in (*SHARES.values(), SPARSE) if shares.records]
    assert len(fitted) == 3
    for shares in fitted:
        assert len(shares.left_out) >= 4
        assert not set(shares.records) & set(shares.left_out)


def test_fitted_kernels_are_close_on_records_they_have_not_seen(points: list[Point], tool: dict[str, Any]) -> None:
    kernels = [each for each in SHARES.values() if each.records]
    lines, _ = tool["score"](point for point in points if any(point.id in each.left_out for each in kernels))
    assert len(lines) >= 11
    off = [abs(1.0 / line.figures["TPOT"].ratio - 1.0) for line in lines]
    assert sum(off) / len(off) < 0.10


@pytest.mark.slow
def test_the_shares_are_what_the_records_say() -> None:
    command = [sys.executable, str(ROOT / "tools" / "fit_kernels.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
