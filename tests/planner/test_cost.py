"""What tokens cost: every GPU hour is paid once, whoever works on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Sgtune = Callable[..., Any]
ASKED = ("plan", "--hardware", "2xh200x8", "--isl", "4000", "--osl", "500", "--concurrency", "128", "--json")


@pytest.mark.parametrize("servers", ["mixed", "pd"])
def test_input_and_output_together_cost_what_the_gpus_cost(sgtune: Sgtune, servers: str) -> None:
    document = json.loads(sgtune(*ASKED, "--servers", servers, "--cost-per-gpu-hour", "2.5").out)
    answer = document["answer"]
    cost, output_s = answer["cost"], answer["output_tok_s"]
    an_hour = output_s * 3600 / 1e6 * (cost["output_per_million"] + 8.0 * cost["input_per_million"])
    assert an_hour == pytest.approx(document["candidates"][0]["deployment"]["gpus"] * 2.5)
    assert 0.0 < cost["prefill_share"] < 1.0
    if servers == "pd":
        assert cost["prefill_share"] == answer["prefill_share"]
    assert cost["over_api"] is None


def test_an_api_that_bills_the_same_costs_as_much(sgtune: Sgtune) -> None:
    own = json.loads(sgtune(*ASKED, "--servers", "mixed", "--cost-per-gpu-hour", "2").out)["answer"]["cost"]
    prices = ("--api-price-input", str(own["input_per_million"]), "--api-price-output", str(own["output_per_million"]))
    asked = (*ASKED, "--servers", "mixed", "--cost-per-gpu-hour", "2", *prices)
    assert json.loads(sgtune(*asked).out)["answer"]["cost"]["over_api"] == pytest.approx(1.0)
    said = sgtune(*(word for word in asked if word != "--json"))
    assert "per million input tokens" in said.out
    assert "of the GPU hours are the input's" in " ".join(said.out.split())


@pytest.mark.parametrize(
    ("prices", "complaint"),
    [
        (("--cost-per-gpu-hour", "0"), "must be positive"),
        (("--cost-per-gpu-hour", "2", "--api-price-input", "1"), "go together"),
        (("--api-price-input", "1", "--api-price-output", "2"), "--cost-per-gpu-hour"),
    ],
)
def test_prices_that_say_nothing_are_refused(sgtune: Sgtune, prices: tuple[str, ...], complaint: str) -> None:
    ran = sgtune(*ASKED, *prices)
    assert ran.code == 2
    assert complaint in ran.err
