"""What a shell is offered, and the list of machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Sgtune = Callable[..., Any]


def offered(folder: Path, *typed: str) -> list[str]:
    """Ask as bash does, with the last word unfinished."""
    environment = os.environ | {
        "_SGTUNE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("sgtune", *typed)), "COMP_CWORD": str(len(typed)),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    code = "from tuner.cli.main import app; app(prog_name='sgtune')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    return done.stdout.split()


def test_machines_releases_and_runs_are_completed(tmp_path: Path) -> None:
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/run.toml").write_text("")
    (tmp_path / "runs/stray").mkdir()
    assert "h200x8" in offered(tmp_path, "plan", "--hardware", "h200")
    assert "0.5.12" in offered(tmp_path, "plan", "--sglang-version", "0.5.1")
    assert offered(tmp_path, "export", "--run", "") == ["first"]


def test_hardware_lists_machines_that_plan_takes(sgtune: Sgtune) -> None:
    machines = json.loads(sgtune("hardware", "--json").out)["machines"]
    by_name = {machine["name"]: machine for machine in machines}
    assert by_name["h200x8"]["gpus_per_node"] == 8
    assert by_name["h200x8"]["hbm_tb_s"] == 4.8
    shown = sgtune("hardware").out
    assert all(name in shown for name in by_name)
