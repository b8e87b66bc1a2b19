"""tools/slice_on_gpu.sh: what it would run is what sgtune and SGLang's own parser take."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from models.architecture import deepseek_r1, load_architecture
from planner.sglang.arguments import read_arguments

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "slice_on_gpu.sh"


def printed(folder: Path, **settings: str) -> list[list[str]]:
    variables = {"OUT": str(folder), "SGTUNE": sys.executable, "PYTHON": sys.executable, **settings}
    ran = subprocess.run(
        [str(SCRIPT), "--dry-run"], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in ran.stdout.splitlines() if not line.startswith("#")]


def test_it_prints_its_steps_and_does_nothing(tmp_path: Path) -> None:
    install, wrapper, model, *measure, compare, calibrate = printed(tmp_path / "out")
    assert install[-2:] == ["-r", str(ROOT / "tools" / "slice_wheels.txt")]
    assert wrapper[0] == "wrapper"
    assert model[-1] == str(tmp_path / "out" / "r1")
    assert [line[line.index("--only") + 1] for line in measure] == ["4", "5", "6"]
    assert "--only" not in compare
    assert {tuple(line[:2]) for line in (install, *measure, compare)} == {("timeout", "600")}
    assert "calibrate" in calibrate
    assert not (tmp_path / "out").exists()
    assert len(printed(tmp_path / "out", WHEELS="")) == 7
    assert len(printed(tmp_path / "out", DEPTHS="4")) == 4


def test_it_takes_nothing_else() -> None:
    ran = subprocess.run([str(SCRIPT), "--dry"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "--dry-run or nothing" in ran.stderr) == (2, True)


def test_its_model_is_r1_and_its_flags_are_those_of_the_release(tmp_path: Path) -> None:
    _, _, model, *_, measure, _ = printed(tmp_path)
    subprocess.run(model, check=True, capture_output=True)
    written = load_architecture(tmp_path / "r1")
    assert written.total_params == deepseek_r1().total_params
    assert written.is_fp8
    assert json.loads((tmp_path / "r1" / "config.json").read_text())["rope_scaling"]["factor"] == 40
    flags = measure[measure.index("--") + 1 :]
    assert not read_arguments(flags, Version("0.5.17")).faults
    told = measure[: measure.index("--")]
    assert told[told.index("--slices") + 1] == "4,5"
    assert told[told.index("--whole") + 1] == "6"
    assert told[told.index("--decode") + 1].startswith("128/256@1,")
    helped = subprocess.run([sys.executable, told[3], "--help"], capture_output=True, text=True, check=True)
    assert all(word in helped.stdout for word in told if word.startswith("--"))


@pytest.mark.slow
def test_its_last_step_runs_on_points_of_such_slices(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    ran = sgtune(
        "calibrate", "--engine", "simulated", "--slice", "4,5", "--hardware", "h200x1",
        "--sglang-version", "0.5.17", "--repeats", "2",
        "--save-points", str(tmp_path / "points.jsonl"), "--out", str(tmp_path / "x.json"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    *_, calibrate = printed(tmp_path)
    ran = sgtune(*calibrate[calibrate.index("calibrate") :])
    assert ran.code == 0, ran.err
    assert "the whole model on h200x8, TP8" in ran.out
    assert "before" in ran.out


def test_every_wheel_is_pinned_and_the_release_is_that_of_the_list() -> None:
    lines = (ROOT / "tools" / "slice_wheels.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(pins) > 35
    assert all([spec.operator for spec in pin.specifier] == ["=="] for pin in pins)
    environment = {**os.environ, "RELEASE": "0.5.23"}
    ran = subprocess.run([str(SCRIPT), "--dry-run"], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, "does not pin sglang==0.5.23" in ran.stderr) == (2, True)


def test_a_step_that_runs_out_of_time_says_how_to_go_on(tmp_path: Path) -> None:
    slow = tmp_path / "sgtune"
    slow.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\ncase "$*" in *"--only 5"*) exec sleep 30;; esac\n')
    slow.chmod(0o755)
    variables = {
        "OUT": str(tmp_path / "out"),
        "SGTUNE": str(slow),
        "PYTHON": sys.executable,
        "WHEELS": "",
        "LIMIT_S": "1",
    }
    ran = subprocess.run([str(SCRIPT)], env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert ran.returncode == 124
    assert "step 4, 5 layers, did not end well" in ran.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--only 4" in asked[1]
    assert not any("--only 6" in line for line in asked)
