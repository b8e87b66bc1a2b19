"""One error has one sign everywhere: measured over predicted, in percent. Slower than predicted is negative."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "100", "--osl", "50", "--concurrency", "8", "--sglang-version", "0.5.12")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run in a world that is slower than believed, and what the command printed."""
    from tests.conftest import run_sgtune

    runs = tmp_path_factory.mktemp("runs")
    (runs / "world.toml").write_text('name = "slow"\nnoise = 0.0\n[parameters]\ntau_us = 2.0\n')
    ran = run_sgtune(
        "tune", *QUESTION, "--no-mtp", "--engine", "simulated", "--world", str(runs / "world.toml"), "--trials", "2",
        "--confirm", "0", "--runs", str(runs), "--run", "a",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return runs / "a", ran


def test_a_slow_world_is_negative_while_it_is_tuned_at_the_end_and_in_the_result(slow: tuple[Path, Any]) -> None:
    folder, ran = slow
    lines = re.findall(r"([\d,]+) tok/s, predicted ([\d,]+) \(([-+][\d.]+) %\)", ran.err)
    assert len(lines) == 2
    for measured, predicted, percent in lines:
        ratio = float(measured.replace(",", "")) / float(predicted.replace(",", ""))
        assert float(percent) == pytest.approx(100 * (ratio - 1), abs=0.3)
        assert float(percent) < -5
    shown = re.search(r"measured over predicted ([-+][\d.]+) %", ran.out)
    assert shown is not None
    assert float(shown[1]) < -5
    learned = json.loads((folder / "result.json").read_text())["learned"]["measured_over_predicted"]
    assert all(residual["mean"] < -0.05 for residual in learned)


def test_validate_says_the_same_of_the_same_points(sgtune: Sgtune, slow: tuple[Path, Any]) -> None:
    ran = sgtune("validate", "--points", str(slow[0]), "--json")
    document = json.loads(ran.out)
    for residual in document["residuals"]:
        assert residual["residual_percent"] == pytest.approx(
            100 * (residual["measured"] / residual["predicted"] - 1), abs=1e-6
        )
    rates = [score for score in document["overall"] if score["metric"] == "output_tok_s"]
    assert rates[0]["bias"] < -5
    assert "measured over predicted" in sgtune("validate", "--points", str(slow[0])).out
