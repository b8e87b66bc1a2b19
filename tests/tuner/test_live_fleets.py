"""Deployments of emulated servers behind SGLang's own router: launched, measured, degraded, killed; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from models.workload import Workload
from planner.fleets.deployed import server_context
from planner.fleets.deployment import Deployment, Role
from planner.fleets.worth_launching import worth_launching
from planner.inputs import read_question
from planner.plans.make import PlanQuestion
from tests.left import nothing_left
from tuner.engines.build import LiveSettings
from tuner.engines.world import World
from tuner.evidence.trial_lines import read_trials
from tuner.fleet_engines.emulated_fleet import emulated_fleet_engine
from tuner.fleet_engines.live_fleet import LiveFleetEngine
from tuner.seam import FailureKind, LaunchFailed

Sgtune = Callable[..., Any]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("sglang_router") is None, reason="pip install -e '.[dev]' brings SGLang's router"),
]
LOAD = ("--hardware", "2xh200x8", "--isl", "200", "--osl", "16", "--concurrency", "8", "--no-mtp")
WORLD = World(name="even", boot_s=0.5, noise=0.0)


def question() -> PlanQuestion:
    return read_question(
        hardware="2xh200x8", model=None, sglang_version="newest", slo=None, profile=None, isl=200, osl=16,
        range_ratio=1.0, concurrency=8, request_rate=None, min_user_tok_s=None, users=None, mtp=False, acceptance=None,
        sigma=None,
    )  # fmt: skip


def engine(folder: Path, world: World = WORLD) -> LiveFleetEngine:
    asked = question()
    live = LiveSettings(model_path="r1", trials=folder / "trials", point_s=2.0, seed=0)
    return emulated_fleet_engine(folder, asked.hardware, partial(server_context, asked), live, world)


def apart() -> Deployment:
    return next(one for one in worth_launching(question(), "pd"))


def test_every_server_says_what_it_did(tmp_path: Path) -> None:
    fleet = engine(tmp_path).launch_fleet(apart(), 0)
    try:
        measured = fleet.measure(question().workload(8))
        assert [server.name for server in measured.servers or ()] == ["prefill-0", "decode-0"]
        prefill, decode = measured.servers or ()
        assert (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE)
        assert prefill.requests > 8
        assert prefill.transfer_ms is not None
        assert prefill.transfer_ms > 0.0
        assert decode.tpot_ms is not None
        assert decode.output_tok_s > 0.0
    finally:
        fleet.stop()
    assert nothing_left()


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "router"])
def test_whatever_of_it_dies_under_load_the_deployment_is_degraded(tmp_path: Path, name: str) -> None:
    fleet = engine(tmp_path).launch_fleet(apart(), 0)
    processes = {member.name: member.process for member in fleet.members} | {"router": fleet.router}
    try:
        threading.Timer(2.0, processes[name].kill).start()
        with pytest.raises(LaunchFailed) as failed:
            fleet.measure(Workload.checked(200, 200, 8))
        assert failed.value.kind is FailureKind.DEGRADED
        assert f"at concurrency 8: {name} ended" in failed.value.evidence
    finally:
        fleet.stop()
    assert nothing_left()


def test_a_server_that_does_not_start_is_named_and_nothing_stays(tmp_path: Path) -> None:
    broken = World(name="b", boot_s=0.5, extra_memory_gib=200.0)
    with pytest.raises(LaunchFailed, match=r"(prefill|decode)-0: "):
        engine(tmp_path, broken).launch_fleet(apart(), 0)
    assert nothing_left()


def test_copies_are_tuned_end_to_end_and_a_killed_tuner_leaves_nothing(sgtune: Sgtune, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text('name = "w"\nboot_s = 0.5\nnoise = 0.0\n')
    words = ["tune", *LOAD, "--engine", "emulated", "--world", str(tmp_path / "w.toml"), "--servers", "mixed",
             "--runs", str(tmp_path), "--point-time", "2s", "--confirm", "0", "--json", "--run"]  # fmt: skip
    ran = sgtune(*words, "whole", "--trials", "1")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["best"]["deployment"]["pools"][0]["servers"] == 2
    trial = document["trials"][0]
    assert trial["measured_output_tok_s"] == pytest.approx(trial["predicted_output_tok_s"], rel=0.3)
    record = read_trials(tmp_path / "whole/trials.jsonl")[0]
    assert [server.name for server in (record.points[0].servers or ())] == ["mixed-0", "mixed-1"]
    assert (tmp_path / "whole/trials/0/mixed-1/server.log").exists()
    assert nothing_left()
    bundle = tmp_path / "bundle"
    assert sgtune("export", "--runs", str(tmp_path), "--run", "whole", "--bundle", str(bundle)).code == 0
    world = ("--engine", "emulated", "--world", str(tmp_path / "w.toml"), "--point-time", "2s", "--json")
    verified = sgtune("verify", str(bundle), *world)
    document = json.loads(verified.out)
    assert (document["deployment"], document["simulated"]) == ("2 x TP8", True)
    assert verified.code == (0 if document["agrees"] else 1)
    assert document["points"][0]["change"] == pytest.approx(0.0, abs=0.25)
    assert "with --engine local or emulated, not docker" in sgtune("verify", str(bundle), "--engine", "docker").err
    assert "add --yes" in sgtune("verify", str(bundle)).err
    script = bundle / "mixed.sh"
    script.write_text(script.read_text().replace('"output_tok_s": ', '"output_tok_s": 1'))
    tampered = sgtune("verify", str(bundle), *world)
    assert tampered.code != 0
    assert "by hand" in tampered.err
    assert nothing_left()
    command = [sys.executable, "-m", "tuner.cli.main", *words, "killed", "--trials", "2"]
    tune = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120.0
    while not (tmp_path / "killed/trials/0/router/server.log").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(tune.pid, signal.SIGKILL)
    tune.wait()
    assert nothing_left()
    again = sgtune(*words, "killed", "--trials", "1", "--resume")
    assert again.code == 0, again.err
    assert json.loads(again.out)["launches"] == 1
