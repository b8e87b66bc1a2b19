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
    install, wrapper, model, measure, calibrate = printed(tmp_path / "out")
    assert "sglang==0.5.17" in install
    assert wrapper[0] == "wrapper"
    assert model[-1] == str(tmp_path / "out" / "r1")
    assert measure[:2] == ["timeout", "3600"]
    assert "calibrate" in calibrate
    assert not (tmp_path / "out").exists()
    assert len(printed(tmp_path / "out", WHEELS="")) == 4


def test_it_takes_nothing_else() -> None:
    ran = subprocess.run([str(SCRIPT), "--dry"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "--dry-run or nothing" in ran.stderr) == (2, True)


def test_its_model_is_r1_and_its_flags_are_those_of_the_release(tmp_path: Path) -> None:
    _, _, model, measure, _ = printed(tmp_path)
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
