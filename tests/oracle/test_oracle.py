"""SGLang's own parser, resolver and checks, run without a GPU in an environment of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "oracle"))

from generate import command_lines  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sglang_and_sgtune_agree() -> None:
    """At least 300 launch lines on four GPUs; the command fails below 98 % of verdicts and 99 % of values."""
    command = [sys.executable, str(ROOT / "oracle" / "run.py"), "--sglang", "0.5.23", "--lines", "300", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith("1200 launches")


def test_launch_lines_are_the_same_for_a_seed_and_not_all_alike() -> None:
    lines = command_lines(300, 7, "r1")
    assert lines == command_lines(300, 7, "r1")
    assert len({tuple(line) for line in lines}) > 290
