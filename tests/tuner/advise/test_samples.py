"""Metrics read from text: what parses counts, what does not is left out, counters that fall began anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.scrape.observed import lengths, observe
from tuner.scrape.samples import Buckets, ScrapeWindow, read_samples

REAL = (Path(__file__).parents[2] / "data" / "logs" / "cpu_0.5.23_metrics.txt").read_text()


def test_a_real_exposition_is_read() -> None:
    samples = read_samples(REAL, 0.0)
    seen = observe(ScrapeWindow(after=samples))
    assert samples.engine == "SGLang"
    assert (seen.requests, seen.isl, seen.osl) == (1.0, 29.0, 8.0)
    assert seen.ttft_ms["mean"] == pytest.approx(142.8, abs=0.1)
    assert seen.graph_share == 0.0


def test_one_spoilt_line_costs_only_itself() -> None:
    samples = read_samples(REAL.replace("sglang:num_running_reqs{", "sglang:num_running_reqs{{{"), 0.0)
    assert "num_running_reqs" not in samples
    assert samples.total("prompt_tokens_total") == 29.0


@pytest.mark.parametrize(
    ("line", "engine"),
    [("vllm:num_requests_running 3", "vLLM"), ("tgi_queue_size 1", "TGI"), ("node_load1 2", ""), ("", "")],
)
def test_another_engine_is_named(line: str, engine: str) -> None:
    assert read_samples(f"# HELP x y\n{line}\n", 0.0).engine == engine


def test_a_counter_that_fell_began_anew() -> None:
    scrapes = [read_samples(f"sglang:num_requests_total {value}\n", at) for at, value in enumerate((50, 80, 5, 9))]
    window = ScrapeWindow(before=scrapes[0], between=tuple(scrapes[1:3]), after=scrapes[3])
    assert window.increase("num_requests_total") == 30 + 5 + 4


def test_quantiles_are_those_of_prometheus() -> None:
    spread = Buckets(count=10, mean=1.0, bounds=(1.0, 2.0, float("inf")), below=(5.0, 9.0, 10.0))
    assert spread.quantile(0.5) == 1.0
    assert spread.quantile(0.7) == pytest.approx(1.5)
    assert spread.quantile(0.99) is None  # beyond the last finite bucket nothing is known
    assert spread.share_below(1.5) == pytest.approx(0.7)


def test_values_out_of_this_world_are_left_out() -> None:
    text = f"sglang:a NaN\nsglang:b +Inf\nsglang:c {'9' * 400}\nsglang:d 1e300\nsglang:e 2\n"
    assert set(read_samples(text, 0.0).series) == {"e"}


def test_lengths_have_the_mean_that_was_seen() -> None:
    for mean, spread in ((1000.0, None), (1000.0, 0.1), (500.0, 0.5)):
        assert lengths(mean, spread).mean == pytest.approx(mean, rel=0.01)
    assert lengths(500.0, 0.5).range_ratio < lengths(500.0, 0.3).range_ratio
