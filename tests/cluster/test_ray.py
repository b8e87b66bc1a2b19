"""Launches on a real Ray cluster of three raylets: all nodes at work, what is killed, and what --resume takes up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.children import start_sgtune
from tests.cluster.three_nodes import ThreeNodes, three_nodes
from tests.faults.test_tune_faults import question
from tests.left import nothing_left, of_this_worker
from tuner.cluster.ledger import NODES_FILE
from tuner.evidence.flight import FLIGHT_FILE
from tuner.evidence.trial import TrialRecord
from tuner.evidence.trial_lines import read_trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRIALS = 6


@pytest.fixture(scope="module")
def nodes() -> Iterator[ThreeNodes]:
    with three_nodes() as cluster:
        yield cluster


def asked(folder: Path, cluster: ThreeNodes, *more: str) -> list[str]:
    return [*question(folder, boot_s=1.0, trials=TRIALS), "--cluster", cluster.address, "--json", *more]


def seats() -> list[psutil.Process]:
    """The processes of this worker's seats, by the name Ray gives them."""
    found = [process for process in psutil.process_iter(["cmdline"]) if _is_seat(process.info["cmdline"])]
    return [process for process in found if of_this_worker(process.pid)]


def _is_seat(words: list[str] | None) -> bool:
    return bool(words) and words[0].startswith("ray::Seat")


def wait_until(true: Callable[[], object], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def launched(folder: Path) -> list[TrialRecord]:
    return [record for record in read_trials(folder / "runs/a/trials.jsonl") if record.launched]


def whole(folder: Path, out: str) -> list[TrialRecord]:
    """Assert that every launch has one record and its files, and return the records."""
    records = launched(folder)
    assert len(records) == TRIALS == json.loads(out)["launches"]
    assert len({record.number for record in records}) == TRIALS
    assert all((folder / "runs/a/trials" / str(record.number) / "server.log").is_file() for record in records)
    assert nothing_left()
    return records


def test_every_node_is_used_and_a_seat_that_dies_costs_a_second_try_elsewhere(
    tmp_path: Path, nodes: ThreeNodes
) -> None:
    process = start_sgtune(*asked(tmp_path, nodes))
    wait_until(lambda: len(seats()) == 3)
    seats()[0].kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    records = whole(tmp_path, out)
    assert all(record.outcome == "measured" for record in records), "a lost node says nothing of a configuration"
    losses: list[dict[str, Any]] = json.loads((tmp_path / "runs/a" / NODES_FILE).read_text())
    assert len(losses) == 1
    used = {record.place.node for record in records if record.place}
    assert used | {losses[0]["node"]} == {"n1", "n2", "n3"}, "the launch that was lost had the third node"


@pytest.mark.deep
def test_a_killed_tuner_leaves_nothing_and_goes_on(tmp_path: Path, nodes: ThreeNodes) -> None:
    process = start_sgtune(*asked(tmp_path, nodes))
    flown = tmp_path / "runs/a" / FLIGHT_FILE
    wait_until(lambda: flown.exists() and flown.read_bytes().count(b"\n") == 3 and len(seats()) == 3)
    process.kill()
    process.communicate()
    assert nothing_left()
    wait_until(lambda: not seats(), seconds=30.0)
    process = start_sgtune(*asked(tmp_path, nodes, "--resume"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    whole(tmp_path, out)


def test_the_nodes_are_examined(nodes: ThreeNodes) -> None:
    process = start_sgtune("doctor", "--cluster", nodes.address, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)["nodes"]
    assert [node["node"] for node in found] == ["n1", "n2", "n3"]
    assert all(node["report"]["niceness"] == 0 for node in found)
    assert "the cluster counts 8 GPUs there, the driver 0" in found[0]["complaints"]


@pytest.mark.deep
def test_the_nodes_are_measured(nodes: ThreeNodes) -> None:
    """They share one machine, so that they take turns; what its CPU does meanwhile decides whether they compare."""
    process = start_sgtune("doctor", "--cluster", nodes.address, "--measure", "--json")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "3 nodes are measured" in err
    for node in json.loads(out)["nodes"]:
        assert {"hbm_gb_s", "hbm_copy_gb_s", "bf16_tflops"} <= node["report"]["profile"]["host"]["measured"].keys()
        assert node["measured"].startswith("memory read ")
        assert "not measured: FP8: only GPUs have it" in node["complaints"]
    assert nothing_left()


@pytest.mark.deep
def test_a_raylet_that_dies_takes_no_trial_with_it(tmp_path: Path, nodes: ThreeNodes) -> None:
    """The last test of this cluster: it has two nodes afterwards."""
    process = start_sgtune(*asked(tmp_path, nodes))
    wait_until(lambda: len(seats()) == 3)
    nodes.end_a_raylet()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert {record.outcome for record in whole(tmp_path, out)} == {"measured"}


def test_no_cluster_there_is_a_sentence(tmp_path: Path) -> None:
    process = start_sgtune(*question(tmp_path), "--cluster", "127.0.0.1:9")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "--cluster 127.0.0.1:9: no Ray cluster answers" in err
