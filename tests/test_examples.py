"""What lies in examples/ works as its README says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_what_grafana_and_alerts_ask_for_is_exported() -> None:
    from tuner.advise.exporter import GAUGES, PREFIX

    texts = [(EXAMPLES / "advise" / name).read_text() for name in ("alerts.yml", "grafana-dashboard.json")]
    asked = {name for text in texts for name in re.findall(rf"{PREFIX}(\w+)", text)}
    assert asked
    assert asked <= {*GAUGES, "rounds_total", "failed_rounds_total"}


def test_rules_and_queries_pass_prometheus_own_check(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    panels = json.loads((EXAMPLES / "advise" / "grafana-dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for command in (
        ["check", "rules", str(EXAMPLES / "advise" / "alerts.yml"), str(tmp_path / "panels.yml")],
        ["check", "config", str(EXAMPLES / "advise" / "prometheus.yml")],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
