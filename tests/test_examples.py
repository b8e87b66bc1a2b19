"""What lies in examples/ works as its README says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner.engines.world import load_world

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN = "h200x8-64-clients"


def test_a_recorded_run_is_exported_and_learned_from(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    exported = sgtune("export", "--runs", str(EXAMPLES / "runs"), "--run", RUN, "--out", str(tmp_path))
    assert exported.code == 0, exported.err
    assert "--tp-size 8" in (tmp_path / "launch.sh").read_text()
    learned = sgtune("calibrate", "--points", str(EXAMPLES / "runs" / RUN), "--out", str(tmp_path / "here.json"))
    assert learned.code == 0, learned.err
    assert (tmp_path / "here.json").is_file()


def test_every_world_is_one() -> None:
    worlds = list((EXAMPLES / "worlds").glob("*.toml"))
    assert worlds
    assert all(load_world(world).boot_s > 0 for world in worlds)
