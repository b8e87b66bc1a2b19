"""Deployments of the real SGLang on a CPU, tuned by `tune --servers pd`: Mooncake over TCP, SGLang's own router."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models.workload import Workload
from planner.fleets.worth_launching import worth_launching
from planner.inputs import read_question
from tests.left import nothing_left
from tests.transfer import sglang_with_transfer
from tuner.engines.build import LiveSettings
from tuner.fleet_engines.local_fleet import local_fleet_engine
from tuner.seam import FailureKind, LaunchFailed

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, ROLE_FLAGS, Installed  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1800)]
# --max-running-requests is what caps differ in: the tune chooses it.
OPEN_FLAGS = (*(word for word in FLAGS if word not in ("--max-running-requests", "64")), *ROLE_FLAGS)


@pytest.fixture(scope="module")
def sglang() -> Installed:
    return sglang_with_transfer()


def sgtune(*words: str) -> list[str]:
    return [sys.executable, "-m", "tuner.cli.main", *words]


def tune(sglang: Installed, runs: Path, run: str, *more: str) -> list[str]:
    return sgtune(
        "tune", "--hardware", "h200x2", "--model", str(sglang.model), "--model-path", str(sglang.model),
        "--isl", "200", "--osl", "40", "--concurrency", "8", "--servers", "pd", "--no-mtp", "--engine", "local",
        "--python", str(sglang.python), "--point-time", "5s", "--confirm", "0", "--runs", str(runs), "--run", run,
        *more, "--", *OPEN_FLAGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(sglang: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three launches: copies, and prefill and decode apart with two caps or chunks."""
    folder = tmp_path_factory.mktemp("runs")
    ran = subprocess.run(
        tune(sglang, folder, "a", "--trials", "3", "--json"), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    (folder / "result.json").write_text(ran.stdout)
    assert nothing_left()
    return folder


def test_caps_or_chunks_of_prefill_and_decode_are_tuned_against_copies(runs: Path) -> None:
    document: dict[str, Any] = json.loads((runs / "result.json").read_text())
    assert document["simulated"] is False
    assert [rate["role"] for rate in document["rates"]] == ["prefill", "decode"]
    assert [trial["label"] for trial in document["trials"]] == ["2 x TP1", "1P TP1 + 1D TP1", "1P TP1 + 1D TP1"]
    lines = [json.loads(line) for line in (runs / "a/trials.jsonl").read_text().splitlines()]
    first, second = (line["deployment"]["pools"] for line in lines[1:])
    assert first != second
    for line in lines[1:]:
        servers = {server["name"]: server for server in line["points"][0]["servers"]}
        assert servers["prefill-0"]["transfer_ms"] > 0.0, "a KV cache was moved"
        assert servers["decode-0"]["output_tok_s"] > 0.0


def test_the_winner_is_exported_for_one_node_and_its_commands_serve_again(runs: Path, sglang: Installed) -> None:
    bundle = runs / "bundle"
    export = sgtune("export", "--runs", str(runs), "--run", "a", "--bundle", str(bundle))
    subprocess.run(export, check=True, capture_output=True)
    assert "| 0 | prefill-0, decode-0 |" in (bundle / "README.md").read_text()
    command = sgtune(
        "verify", str(bundle), "--engine", "local", "--model", str(sglang.model), "--model-path", str(sglang.model),
        "--python", str(sglang.python), "--point-time", "5s", "--yes", "--json",
    )  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr  # 1: a small machine is in another mood than when it was tuned
    document = json.loads(ran.stdout)
    assert (document["deployment"], document["simulated"]) == ("1P TP1 + 1D TP1", False)
    assert document["points"][0]["change"] == pytest.approx(0.0, abs=0.5)
    assert nothing_left()


def test_a_prefill_server_killed_under_load_makes_the_deployment_degraded(sglang: Installed, tmp_path: Path) -> None:
    question = read_question(
        hardware="h200x2", model=sglang.model, sglang_version="newest", slo=None, profile=None, isl=200, osl=40,
        range_ratio=1.0, concurrency=8, request_rate=None, min_user_tok_s=None, users=None, mtp=False, acceptance=None,
        sigma=None,
    )  # fmt: skip
    live = LiveSettings(
        model_path=str(sglang.model), trials=tmp_path, point_s=10.0, seed=0, extra_flags=OPEN_FLAGS
    )  # fmt: skip
    engine = local_fleet_engine(question, live, str(sglang.python))
    fleet = engine.launch_fleet(worth_launching(question, "pd")[0], 0)
    try:
        prefill = next(member for member in fleet.members if member.name == "prefill-0")
        threading.Timer(3.0, prefill.process.kill).start()
        with pytest.raises(LaunchFailed) as failed:
            fleet.measure(Workload.checked(200, 40, 8))
        assert failed.value.kind is FailureKind.DEGRADED
        assert "prefill-0 ended" in failed.value.evidence
    finally:
        fleet.stop()
        engine.close()
    assert nothing_left()


def test_a_killed_tuner_takes_both_servers_and_the_router_with_it(sglang: Installed, tmp_path: Path) -> None:
    command = tune(sglang, tmp_path, "k", "--trials", "1")
    tuner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 300.0
    while not (tmp_path / "k/trials/0/router/server.log").exists():
        assert time.monotonic() < until
        assert tuner.poll() is None
        time.sleep(0.2)
    os.kill(tuner.pid, signal.SIGKILL)
    tuner.wait()
    assert nothing_left()
