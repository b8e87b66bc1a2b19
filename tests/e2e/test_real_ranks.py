"""The real SGLang on a CPU as one server over two nodes of a real Ray cluster: tuned, exported, verified, broken."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.three_nodes import ThreeNodes, three_nodes
from tests.left import marked, nothing_left, of_this_worker

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, Installed, install  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1800)]
SPACE = """
[space]
layout = "TP2"
mtp_steps = 0
mem_fraction_static = "default"
chunked_prefill_size = ["default", 16]
cuda_graph = "default"
max_running = "default"
"""


@pytest.fixture(scope="module")
def sglang() -> Installed:
    return install()


@pytest.fixture(scope="module")
def nodes() -> Iterator[ThreeNodes]:
    """Nodes of one logical GPU, on which SGLang binds a rank to a core each."""
    with three_nodes(gpus=1, variables={"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}) as cluster:
        yield cluster


@dataclass(frozen=True)
class OverTwo:
    """A finished run over two nodes, its answer, and its launch files."""

    run: Path
    document: dict[str, Any]
    bundle: Path


def sgtune(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tuner.cli.main", *arguments]


@pytest.fixture(scope="module")
def tuned(sglang: Installed, nodes: ThreeNodes, tmp_path_factory: pytest.TempPathFactory) -> OverTwo:
    """Two configurations: prompts of 256 tokens in one pass, and in sixteen."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "space.toml").write_text(SPACE)
    command = sgtune(
        "tune", "--hardware", "2xh200x1", "--model", str(sglang.model), "--model-path", str(sglang.model),
        "--isl", "256", "--osl", "16", "--concurrency", "4", "--engine", "local", "--python", str(sglang.python),
        "--no-mtp", "--runs", str(folder), "--run", "a", "--point-time", "3s", "--trials", "2", "--sampler", "grid",
        "--confirm", "0", "--space", str(folder / "space.toml"), "--cluster", nodes.address, "--json", "--", *FLAGS,
    )  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "the cluster counts 1 GPUs there, the driver 0" in ran.stderr, "the nodes were looked at"
    for name in ("n1", "n2", "n3"):
        measured = json.loads((folder / "a/nodes" / f"{name}.json").read_text())["host"]["measured"]
        assert {"hbm_gb_s", "bf16_tflops"} <= measured.keys(), "and measured"
    places = ("--python", str(sglang.python), "--model-path", str(sglang.model), "--host", "127.0.0.1")
    export = sgtune("export", "--runs", str(folder), "--run", "a", *places, "--bundle", str(folder / "bundle"))
    written = subprocess.run(export, capture_output=True, text=True, check=False)
    assert written.returncode == 0, written.stderr
    return OverTwo(folder / "a", json.loads(ran.stdout), folder / "bundle")


def test_both_ranks_serve_every_configuration_to_the_token(tuned: OverTwo) -> None:
    """A point whose answers lack a token has the verdict lengths_off, and none like it decides."""
    rates = {}
    for line in (tuned.run / "trials.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["outcome"] == "measured", record["reason"]
        assert record["points"][-1]["verdict"] in ("ok", "unsteady")
        assert len({record["place"]["node"], *record["place"]["beside"]}) == 2
        rates[record["params"]["chunked_prefill_size"]] = record["points"][-1]["output_tok_s"]
        folder = tuned.run / "trials" / str(record["number"])
        assert " TP0] Load weight end" in (folder / "server.log").read_text()
        assert " TP1] Load weight end" in (folder / "rank-1.server.log").read_text()
        figures = json.loads((folder / "rank-1.server_info.json").read_text())["figures"]
        assert figures["kv_tokens_per_rank"]["measured"] == 16384
    assert rates[16] < rates["default"]
    assert tuned.document["best"]["config"]["chunked_prefill_size"] != 16
    assert marked() == []


def verify(tuned: OverTwo, sglang: Installed, nodes: ThreeNodes) -> list[str]:
    return sgtune(
        "verify", str(tuned.bundle), "--model", str(sglang.model), "--python", str(sglang.python), "--engine", "local",
        "--point-time", "3s", "--yes", "--json", "--cluster", nodes.address,
    )  # fmt: skip


def test_the_exported_bundle_is_started_on_both_nodes_and_compared(
    tuned: OverTwo, sglang: Installed, nodes: ThreeNodes
) -> None:
    """Whether the figures agree is a matter of a quiet machine (test_real_sglang); that all are there is not."""
    ran = subprocess.run(verify(tuned, sglang, nodes), capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    document = json.loads(ran.stdout)
    assert (document["agreement"] == "agrees") is (ran.returncode == 0)
    points = document["points"]
    swaying = any(point["measured"]["verdict"] == "unsteady" for point in points)
    assert not swaying or document["agreement"] in ("inconclusive", "differs"), "a rate that swayed is no agreement"
    recorded = json.loads((tuned.bundle / "bundle.json").read_text())["record"]["points"]
    assert [point["concurrency"] for point in points] == sorted(point["concurrency"] for point in recorded)
    assert points[-1]["concurrency"] == 4, "a crowded machine may leave lower loads without a figure, not this one"
    assert all(point["measured"]["output_tok_s"] > 0 for point in points)
    assert all(point["measured"]["verdict"] != "lengths_off" for point in points)


def test_a_rank_that_is_killed_under_load_is_named(tuned: OverTwo, sglang: Installed, nodes: ThreeNodes) -> None:
    process = subprocess.Popen(verify(tuned, sglang, nodes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measuring"):
            break
    named = [p for p in psutil.process_iter(["cmdline"]) if "sglang::scheduler_TP1" in str(p.info["cmdline"])]
    schedulers = [process for process in named if any(of_this_worker(parent.pid) for parent in process.parents())]
    assert len(schedulers) == 1
    killed_s = time.monotonic()
    schedulers[0].kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "did not run (killed): " in err
    assert "rank 1 on node " in err
    assert time.monotonic() - killed_s < 120
    assert nothing_left()
