"""`sgtune models`: the known checkpoints, in a terminal and as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from models.architecture.shipped import checkpoints
from models.version import NEWEST, parse_version
from tuner.cli.known_models import _document
from tuner.cli.views.models_view import show_models


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


def test_the_list_fits_eighty_columns() -> None:
    text = io.StringIO()
    documents = [_document(each, parse_version(NEWEST)) for each in checkpoints()]
    show_models(documents, NEWEST, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == len(documents) + 4, "no row is folded"
