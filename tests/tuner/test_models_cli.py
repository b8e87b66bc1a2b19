"""`sgtune models`: the known checkpoints, in a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def test_one_checkpoint_is_shown_whole(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("models", "cognitivecomputations/DeepSeek-R1-AWQ")
    assert ran.code == 0
    for said in ("364,589,799,936 bytes", "4-bit AWQ", "without an MTP layer", "70,272 bytes a token", "a100x8"):
        assert said in ran.out


def test_the_list_as_json_has_every_figure(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("models", "kimi", "--json", "--sglang-version", "0.5.9")
    document = json.loads(ran.out)
    assert document["sglang_version"] == "0.5.9"
    by_name = {each["name"]: each for each in document["checkpoints"]}
    k2 = by_name["moonshotai/Kimi-K2-Instruct"]
    assert k2["weights"] == "FP8"
    assert not k2["draft_layer"]
    assert "h200x8" not in k2["runs_on"]
    assert "2xh200x8" in k2["runs_on"]


def test_a_name_that_is_not_known_is_said(sgtune: Callable[..., Any]) -> None:
    ran = sgtune("models", "qwen3")
    assert ran.code == 2
    assert "no shipped checkpoint" in ran.err
