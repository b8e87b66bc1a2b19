"""SGLang's own parser, resolver and checks, run without a GPU in an environment of their own."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from planner.launch_lines.read import launch_of_file

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "export"
sys.path[:0] = [str(ROOT / "oracle"), str(ROOT / "sglang_cpu")]

from generate import command_lines  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sglang_and_sgtune_agree() -> None:
    """At least 300 launch lines on four GPUs; the command fails below 99 % of verdicts, 100 % of fractions."""
    command = [sys.executable, str(ROOT / "oracle" / "run.py"), "--sglang", "0.5.23", "--lines", "300", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith("SGLang 0.5.23: 1200 launches")


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_defaults_of_old_releases_are_those_of_their_wheels_on_every_gpu() -> None:
    """The command fails below 100 % of memory fractions and 99 % of chunks."""
    command = [sys.executable, str(ROOT / "oracle" / "run.py"), "--defaults", "--sglang", "0.4.6.post5", "0.4.7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_launch_lines_have_only_flags_of_the_release_they_are_for() -> None:
    known = {"--tp-size", "--enable-ep-moe", "--enable-dp-attention", "--dp-size", "--mem-fraction-static"}
    odd = {"--attn-dp-size", "--moe-a2a-backend", "--cuda-graph-max-bs-decode"}
    words = {word for line in command_lines(300, 7, "r1", known) for word in line}
    assert not odd & words
    assert "--enable-ep-moe" in words


def test_launch_lines_are_the_same_for_a_seed_and_not_all_alike() -> None:
    lines = command_lines(300, 7, "r1")
    assert lines == command_lines(300, 7, "r1")
    assert len({tuple(line) for line in lines}) > 290


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sglang_takes_what_is_exported() -> None:
    """Every launch file there is a golden one of: its own command, before SGLang's own parser and checks."""
    oracle = runpy.run_path(str(ROOT / "oracle" / "run.py"))  # another script of the project is named run, too
    folder = str(oracle["model_folder"]())
    files = [file for file in sorted(GOLDEN.rglob("*")) if file.is_file() and file.parent.name != "cpu"]
    typed = [list(launch_of_file(file).words) for file in files]
    assert len(typed) >= 15
    lines = [
        [folder if before == "--model-path" else word for before, word in pairwise(["", *words])] for words in typed
    ]
    answers = oracle["ask"]([oracle["Run"](release="0.5.23", gpus=("h200",), lines=lines)])[0][0]
    refused = [(file.name, answer) for file, answer in zip(files, answers, strict=True) if not answer["accepted"]]
    assert refused == []


def test_stand_ins_for_classes_have_every_member() -> None:
    """0.5.12 reads `ActivationType.Swiglu` of a compiled package while it is imported."""
    pretend = runpy.run_path(str(ROOT / "oracle" / "pretend.py"))
    made = pretend["Silent"]("flashinfer").ActivationType
    assert made.Swiglu is not None
    assert isinstance(made, type)
    assert not hasattr(made, "__no_such__")


def test_the_checkpoint_that_is_asked_about_has_what_releases_look_into() -> None:
    oracle = runpy.run_path(str(ROOT / "oracle" / "run.py"))
    config = json.loads((oracle["model_folder"]() / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 40
    assert config["max_position_embeddings"] == 163840
