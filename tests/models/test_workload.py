"""Lengths and SLOs."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprobe.errors import InputError
from models.workload import ChatLengths, Lengths, Metric, Slo, Statistic, Workload


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "limit_ms"),
    [
        ("ttft:p99<2s", Metric.TTFT, Statistic.P99, 2000.0),
        ("tpot:mean<50ms", Metric.TPOT, Statistic.MEAN, 50.0),
        (" E2E : P95 <= 1.5 s ", Metric.E2E, Statistic.P95, 1500.0),
    ],
)
def test_slos_that_parse(text: str, metric: Metric, statistic: Statistic, limit_ms: float) -> None:
    found = Slo.parse(text)
    assert (found.metric, found.statistic, found.limit_ms) == (metric, statistic, limit_ms)
    assert Slo.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "ttft", "ttft<2s", "ttft:p99<2", "ttft:p99>2s", "itl:p99<2s", "ttft:p42<2s", "ttft:p99<0s", "ttft:p99<-1s"],
)
def test_slos_that_do_not(text: str) -> None:
    with pytest.raises(InputError, match="--slo"):
        Slo.parse(text)


@given(st.text(max_size=40))
def test_no_text_is_a_crash(text: str) -> None:
    with contextlib.suppress(InputError):
        assert Slo.parse(text).limit_ms > 0


@given(st.integers(1, 100_000), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_lengths_stay_in_their_range(nominal: int, ratio: float, seed: int) -> None:
    lengths = Lengths(nominal=nominal, range_ratio=ratio)
    drawn = lengths.sample(50, np.random.default_rng(seed))
    assert lengths.shortest <= drawn.min()
    assert drawn.max() <= nominal
    assert lengths.shortest <= lengths.mean <= nominal


@pytest.mark.parametrize(
    ("isl", "osl", "concurrency", "ratio", "flag"),
    [(0, 1, 1, 1.0, "--isl"), (1, -5, 1, 1.0, "--osl"), (1, 1, 0, 1.0, "--concurrency"),
     (1, 1, 1, 1.1, "--range-ratio"), (10**9, 1, 1, 1.0, "--isl"), (1, 1, 1, float("nan"), "--range-ratio")],
)  # fmt: skip
def test_impossible_workloads_name_the_flag(isl: int, osl: int, concurrency: int, ratio: float, flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        Workload.checked(isl, osl, concurrency, ratio)


@pytest.mark.parametrize("mean", [50, 219, 1500])
def test_lengths_of_conversations_have_their_mean_and_many_are_short(mean: int) -> None:
    lengths = ChatLengths(nominal=mean).at((np.arange(2000) + 0.5) / 2000)
    assert lengths.mean() == pytest.approx(mean, rel=0.01)
    assert np.median(lengths) < 0.8 * mean
    assert lengths.min() >= 1
    assert lengths.max() <= max(1024, 5 * mean)
