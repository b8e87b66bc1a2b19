"""Prefill and decode servers on machines of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Sgtune = Callable[..., Any]
ASKED = ("--isl", "4000", "--osl", "500", "--concurrency", "128")


def test_each_role_stands_on_its_own_machine_and_all_nodes_work(sgtune: Sgtune) -> None:
    ran = sgtune("plan", "--prefill-hardware", "2xh20x8", "--decode-hardware", "h200x8", *ASKED, "--json")
    document = json.loads(ran.out)
    for candidate in document["candidates"]:
        prefill, decode = candidate["deployment"]["pools"]
        assert (prefill["role"], prefill["servers"], prefill["hardware"]) == ("prefill", 2, "2xh20x8")
        assert (decode["role"], decode["servers"]) == ("decode", 1)
    assert document["answer"]["nodes"] == 3
    assert document["answer"]["prefill_share"] == pytest.approx(2 / 3)


def test_a_faster_prefill_machine_answers_sooner(sgtune: Sgtune) -> None:
    waits = []
    for prefill in ("h20x8", "h200x8"):
        asked = ("plan", "--prefill-hardware", prefill, "--decode-hardware", "h200x8", *ASKED, "--no-mtp", "--json")
        waits.append(json.loads(sgtune(*asked).out)["answer"]["ttft_ms"]["mean"])
    assert waits[1] < waits[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give --hardware"),
        (("--hardware", "h200x8", "--prefill-hardware", "h20x8", "--decode-hardware", "h200x8"), "give --hardware"),
        (("--prefill-hardware", "h20x8"), "go together"),
        (("--prefill-hardware", "h20x4", "--decode-hardware", "h200x8"), "does not hold"),
    ],
)
def test_half_a_question_is_refused(sgtune: Sgtune, options: tuple[str, ...], complaint: str) -> None:
    ran = sgtune("plan", *options, *ASKED)
    assert ran.code == 2
    assert complaint in ran.err
