"""Servers that answer with whatever breaks a reader: advice or one clear error, in bounded time, going nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import fuzz_advise

from tuner.scrape import source

SEEDS = range(40)


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(source, "ANSWER_S", 0.5)
    listening = fuzz_advise._decoy()
    yield
    listening.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hostile_server_costs_at_most_one_clear_error(seed: int) -> None:
    outcome, seconds, cpu = fuzz_advise.one_case(seed)
    assert outcome in ("advice", "no expectation", "one error")
    assert seconds < fuzz_advise.MOST_WALL_S
    assert cpu < fuzz_advise.MOST_CPU_S
    assert fuzz_advise.DECOY.visits == 0
