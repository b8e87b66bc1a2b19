"""Published runs of other checkpoints: records with sources, kept out of every fit, and scored as they come."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from tests_data import SHIPPED

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


def test_mxfp4_steps_on_mi355x_lie_in_their_bands(points: list[Point], tool: dict[str, Any]) -> None:
    lines, _ = tool["score"](point for point in points if point.gpu == "MI355X" and (point.concurrency or 0) <= 16)
    assert len(lines) >= 10
    assert all(line.figures["TPOT"].inside for line in lines)
    rows = tool["table"](lines)
    assert rows[1].startswith("MXFP4 MI355X")
    assert rows[-1].startswith("all")
