"""Printed = JSON = exported = what `check` reads back, for plans drawn at random over machines, releases and loads."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from planner.launch_files.fleet import FLEET_TARGETS
from planner.launch_files.targets import Target
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import launches_of_file, launches_of_words
from planner.sglang.flags import listed_releases
from tests.conftest import run_sgtune
from tests.launched_flags import flags_of

MACHINES = ("h200x8", "b200x8", "mi300x8", "h20-3ex8", "2xh100x8", "4xh200x8", "nf5688g7")
SERVERS = ("mixed", "pd", "any")


def draw(seed: int) -> list[str]:
    """Draw a question: machine, release, lengths, clients or a rate, and what deployments of several nodes may be."""
    rng = random.Random(seed)
    machine = rng.choice(MACHINES)
    load = rng.choice(
        (["--concurrency", str(rng.choice((1, 7, 64, 512)))], ["--request-rate", f"{rng.uniform(1, 9):.1f}"])
    )
    fleet = ["--servers", rng.choice(SERVERS)] if machine[0].isdecimal() else []
    # Prefill and decode apart, FP8 on Blackwell and on AMD: none of the oldest releases has them all.
    releases = listed_releases()[-40:] if fleet else listed_releases()
    return [
        "--hardware", machine, "--isl", str(rng.randint(64, 6000)), "--osl", str(rng.randint(32, 900)),
        "--sglang-version", rng.choice(releases), *load, *fleet,
    ]  # fmt: skip


def roles(lines: list[LaunchLine], version: Version) -> list[list[str]]:
    """Return the different configurations among launch lines, in the order of the first of each."""
    seen: list[list[str]] = []
    for line in lines:
        flags = flags_of(list(line.words), version)
        if flags not in seen:
            seen.append(flags)
    return seen


def planned(candidate: dict[str, Any], version: Version) -> list[list[str]]:
    """Return a candidate's configurations: one, or one a role."""
    pools = (candidate.get("deployment") or {}).get("pools") or [candidate]
    return [flags_of(["--model-path", "r1", *pool["argv"]], version) for pool in pools]


def printed(text: str) -> list[LaunchLine]:
    """Return the launch lines below "launch command" in what `plan` prints."""
    lines = [line for line in text.splitlines() if "sglang.launch_server" in line]
    return [launch for line in lines for launch in launches_of_words(shlex.split(line))]


def one_configuration(seed: int, folder: Path) -> None:
    question = draw(seed)
    version = Version(question[question.index("--sglang-version") + 1])
    text, document = run_sgtune("plan", *question), run_sgtune("plan", *question, "--json")
    if document.code == 2:
        assert text.code == 2, (question, text.out)
        return
    plan = json.loads(document.out)
    if not plan["candidates"]:
        return
    (folder / "plan.json").write_text(document.out, encoding="utf-8")
    assert roles(printed(text.out), version) == planned(plan["candidates"][0], version), question
    for number in {1, len(plan["candidates"])}:
        candidate = plan["candidates"][number - 1]
        for pool in (candidate.get("deployment") or {}).get("pools") or [candidate]:
            assert flags_of(["--model-path", "r1", *pool["argv"]], version) == pool["argv"], question
        out = folder / str(number)
        ran = run_sgtune("export", "--plan", str(folder / "plan.json"), "--candidate", str(number), "--out", str(out))
        if candidate["prediction"]["ttft_ms"]["mean"] is None:
            assert (ran.code, "cannot keep up" in ran.err) == (2, True), question
            continue
        assert ran.code == 0, (question, ran.err)
        fleet = (out / "router.sh").exists()
        names = [*FLEET_TARGETS] if fleet else [target.file_name for target in Target]
        for name in names:
            path = out / name
            if not path.exists():
                continue
            assert roles(launches_of_file(path), version) == planned(candidate, version), (question, name)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(8, 200))])
def test_a_plan_is_one_configuration_wherever_it_is_written(seed: int, tmp_path: Path) -> None:
    one_configuration(seed, tmp_path)
