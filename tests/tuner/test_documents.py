"""Every `--json` document is one line and keeps the schema that is published for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.documents import SCHEMAS, document_of

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "1000", "--osl", "1000", "--concurrency", "64")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run on the simulated engine, and what the command printed."""
    from tests.conftest import run_sgtune

    runs = tmp_path_factory.mktemp("runs")
    options = ("--engine", "simulated", "--trials", "2", "--confirm", "1", "--runs", str(runs), "--run", "a")
    ran = run_sgtune("tune", *QUESTION, *options, "--json")
    assert ran.code == 0, ran.err
    return runs, ran.out


def test_tune_keeps_its_schema(run: tuple[Path, str]) -> None:
    assert document_of("tune", run[1])["launches"] == 2


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("plan", QUESTION, 0),
        ("plan", ("--hardware", "h100x8", *QUESTION[2:]), 3),
        ("plan", (*QUESTION, "--slo", "tpot:mean<1ms"), 3),
        ("check", ("--", "python", "-m", "sglang.launch_server", "--model-path", "r1", "--tp", "8"), 0),
        ("check", ("--", "python", "-m", "sglang.launch_server", "--model-path", "r1", "--tp", "7"), 3),
        ("probe", ("--inventory",), 0),
        ("doctor", ("--python", "no-such-python"), 0),
    ],
)
def test_an_answer_keeps_its_schema_whether_good_or_bad(
    sgtune: Sgtune, command: str, arguments: tuple[str, ...], code: int
) -> None:
    ran = sgtune(command, "--json", *arguments)
    assert ran.code == code, ran.err
    document_of(command, ran.out)


def test_what_is_made_of_a_run_keeps_its_schema(sgtune: Sgtune, run: tuple[Path, str], tmp_path: Path) -> None:
    folder = run[0] / "a"
    document_of("export", sgtune("export", "--runs", str(run[0]), "--run", "a", "--out", str(tmp_path), "--json").out)
    document_of("validate", sgtune("validate", "--points", str(folder), "--json").out)
    out = tmp_path / "profile.json"
    document_of("calibrate", sgtune("calibrate", "--points", str(folder), "--out", str(out), "--json").out)


def test_a_schema_can_be_broken() -> None:
    """A schema that takes anything would make the tests above say nothing."""
    for file in SCHEMAS.glob("*.json"):
        validator = jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))
        assert not validator.is_valid({}), file
