"""Servers over two nodes of a real Ray cluster: tuned, kept with the logs of both ranks, verified, and broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.children import start_sgtune
from tests.cluster.three_nodes import ThreeNodes, three_nodes
from tests.faults.test_tune_faults import question
from tests.left import nothing_left
from tuner.engines.faults import Fault, FaultKind
from tuner.evidence.trial_lines import read_trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def sgtune(*arguments: str) -> Ended:
    """Run a command in a process of its own: Ray must not be loaded where other tests run."""
    process = start_sgtune(*arguments)
    out, err = process.communicate(timeout=500)
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="module")
def nodes() -> Iterator[ThreeNodes]:
    with three_nodes() as cluster:
        yield cluster


def on_two_nodes(folder: Path, *faults: Fault, trials: int = 2) -> list[str]:
    """The question of the faults' tests, for a machine of two nodes."""
    asked = question(folder, *faults, boot_s=1.0, trials=trials)
    asked[asked.index("--hardware") + 1] = "2xh200x8"
    return asked


def test_a_server_over_two_nodes_is_tuned_exported_and_verified(tmp_path: Path, nodes: ThreeNodes) -> None:
    """On two nodes of the three, which a cluster file names."""
    ours = tmp_path / "cluster.toml"
    ours.write_text(f'ray = "{nodes.address}"\nnodes = [{{name = "n2", gpus = 8}}, {{name = "n3", gpus = 8}}]\n')
    ran = sgtune(*on_two_nodes(tmp_path), "--cluster", str(ours), "--json")
    assert ran.code == 0, ran.err
    run = tmp_path / "runs/a"
    records = [record for record in read_trials(run / "trials.jsonl") if record.launched]
    assert [record.outcome for record in records] == ["measured", "measured"]
    for record in records:
        assert record.place is not None
        assert set(record.place.nodes) == {"n2", "n3"}
        folder = run / "trials" / str(record.number)
        for name in ("server.log", "rank-1.server.log"):
            assert "Load weight end" in (folder / name).read_text()
        tokens = [
            json.loads((folder / name).read_text())["figures"]["kv_tokens_per_rank"]["measured"]
            for name in ("server_info.json", "rank-1.server_info.json")
        ]
        assert tokens[0] == tokens[1] > 0
        assert "Dummy health check server" in (folder / "rank-1.server.log").read_text()
    script = run / "export/launch.sh"
    assert "--nnodes 2" in script.read_text().replace("\\\n ", "")
    again = ("--engine", "emulated", "--world", str(tmp_path / "world.toml"), "--point-time", "2s", "--json")
    verified = sgtune("verify", str(script), *again, "--cluster", nodes.address)
    document = json.loads(verified.out)
    assert len(document["points"]) == 2, verified.err
    assert all(point["measured"]["verdict"] == "ok" for point in document["points"])
    alone = sgtune("verify", str(script), *again)
    assert alone.code == 2
    assert "--cluster" in alone.err
    assert nothing_left()


@pytest.mark.deep
def test_the_rank_that_ends_first_says_why(tmp_path: Path, nodes: ThreeNodes) -> None:
    """Rank 1 runs out of memory; rank 0 dies of the connection that breaks off."""
    text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.75 GiB."
    oom = Fault(kind=FaultKind.EXIT, phase="weights", text=text, code=-9, launches=(0,), rank=1)
    ran = sgtune(*on_two_nodes(tmp_path, oom), "--cluster", nodes.address, "--json")
    assert ran.code == 0, ran.err
    first = read_trials(tmp_path / "runs/a/trials.jsonl")[0]
    assert (first.outcome, first.failure) == ("infeasible", "oom_weights")
    assert first.reason.startswith("rank 1 on node ")
    log = (tmp_path / "runs/a/trials/0/server.log").read_text()
    assert "Connection reset by peer" in log, "rank 0 came to know"
    assert nothing_left()


def test_a_cluster_too_small_is_a_sentence(tmp_path: Path, nodes: ThreeNodes) -> None:
    asked = on_two_nodes(tmp_path)
    asked[asked.index("--hardware") + 1] = "4xh200x8"
    ran = sgtune(*asked, "--cluster", nodes.address)
    assert ran.code == 2
    assert "3 of 4 nodes" in ran.err
