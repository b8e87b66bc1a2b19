"""README promises: its figures are what its commands print, its links lead somewhere, versions agree."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner import __version__

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_command_prints_what_is_shown(sgtune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`...` stands for lines or words left out; the rest is printed as shown in 100 columns."""
    monkeypatch.setattr("tuner.cli.common.terminal.PIPED_COLUMNS", 100)
    command = re.search(r"python3 dev\.py sgtune (plan .+)", README)
    assert command
    printed = [line.rstrip() for line in sgtune(*command[1].split()).out.strip().splitlines()]
    for line in README.split("```")[3].strip().splitlines():
        start, cut, _ = line.partition("...")
        found = any(each.startswith(start) if cut else each == line for each in printed)
        assert found, f"not printed: {line}"


def test_the_first_screen_fits_a_terminal_of_a_hundred_columns() -> None:
    first_screen = README.partition("## What it can do")[0].splitlines()
    assert max(map(len, first_screen)) <= 100


def test_the_founding_table_is_what_explain_prints(sgtune: Callable[..., Any]) -> None:
    rows = re.findall(r"\| [\d,]+ \([\d,]+ / 1,000\) \| ([\d,.]+) [^|]+\| [^|]+ \| ([+-]\d+) % \|", README)
    assert len(rows) == 4
    ran = sgtune("explain", str(ROOT / "examples" / "founding_table.jsonl"), "--json")
    residuals = list(json.loads(ran.out)["hypotheses"][0]["residuals"].values())
    for (_, shown), latency in zip(rows[:3], residuals[:3], strict=True):  # speeds are shown, latencies compared
        assert abs((1.0 / (1.0 + latency / 100.0) - 1.0) * 100.0 - float(shown)) <= 1.0
    assert abs(residuals[3] - float(rows[3][1])) <= 1.0
    assert all(abs(float(shown)) <= 25.0 for _, shown in rows)


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["version"] == __version__
    assert f"## [{__version__}]" in changelog
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
