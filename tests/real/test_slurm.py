"""The exported slurm.sh on a real Slurm of three nodes: what it is given, who is who, and what a lost node does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from packaging.version import Version

from models.config import ServerConfig
from models.version import NEWEST
from planner.launch import launch_spec
from planner.launch_files.files import export_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.targets import Target
from tests.real.conftest import need
from tests.real.files import wait_until
from tests.real.slurm import CPUS, GPUS, MEMORY_MB, Slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Stands in for the interpreter with SGLang: writes down what it was given, and serves until it is told to end.
PYTHON = """#!/bin/sh
{{ echo "$SLURM_NODEID $SLURMD_NODENAME $SLURM_CPUS_ON_NODE $CUDA_VISIBLE_DEVICES"; printf '%s\\n' "$@"; }} > {out}.part
mv {out}.part {out}
trap 'echo ended >> {out}; exit 0' TERM
{body}
"""
SERVES = "while :; do sleep 0.2; done"
PATH = "/models/Deep Seek 'R1'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    need("slurm")
    try:
        made = Slurm()
    except PermissionError as error:
        pytest.skip(f"no device files can be made here: {error}")
    try:
        made.start()
    except RuntimeError as error:
        made.close()
        pytest.skip(f"no Slurm starts here: {error}")
    yield made
    made.close()


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    for file in cluster.home.glob("rank.*"):
        file.unlink()
    yield cluster
    cluster.ask("scancel", "--user=root")
    wait_until(lambda: not cluster.ask("squeue", "--noheader").stdout)


def submit(slurm: Slurm, body: str = SERVES) -> str:
    """Export for two nodes and submit the file as it was written; return the job's number."""
    spec = launch_spec(ServerConfig(tp_size=16, nnodes=2), Version(NEWEST), model_path=PATH)
    script = export_files(spec, Provenance(lines=()), slurm.home, [Target.SLURM], Parameters(model_path=PATH))[0]
    python = slurm.home / "python"
    python.write_text(PYTHON.format(out=f"{slurm.home}/rank.$SLURMD_NODENAME", body=body))
    python.chmod(0o755)
    sent = slurm.ask("sbatch", "--parsable", str(script), PYTHON=str(python))
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def ranks(slurm: Slurm) -> dict[str, list[str]]:
    """Return by node what each rank wrote down, its first line in words."""
    return {file.suffix[1:]: file.read_text().splitlines() for file in slurm.home.glob("rank.node?")}


def test_two_nodes_get_all_they_have_and_know_which_they_are(slurm: Slurm) -> None:
    number = submit(slurm)
    wait_until(lambda: len(ranks(slurm)) == 2)
    job = slurm.job(number)
    # an exclusive job claims no memory by itself: DefMemPerNode would be 1,000 MB a node
    assert job["TRES"].startswith(f"cpu={2 * CPUS},mem={2 * MEMORY_MB // 1024}G,node=2")
    for node, (first, *words) in ranks(slurm).items():
        number_of_node, name, cpus, gpus = first.split()
        assert (name, int(cpus), gpus) == (node, CPUS, ",".join(map(str, range(GPUS))))
        assert words[:4] == ["-m", "sglang.launch_server", "--model-path", PATH]
        assert words[-4:] == ["--node-rank", number_of_node, "--dist-init-addr", "node1:20000"]
    assert {lines[0].split()[0] for lines in ranks(slurm).values()} == {"0", "1"}
    slurm.ask("scancel", number)
    wait_until(lambda: slurm.states() == dict.fromkeys(slurm.states(), "idle"))
    assert all(lines[-1] == "ended" for lines in ranks(slurm).values())


def test_one_rank_that_fails_ends_the_other(slurm: Slurm) -> None:
    number = submit(slurm, f'[ "$SLURM_NODEID" = 0 ] || {{ sleep 1; exit 3; }}\n{SERVES}')
    wait_until(lambda: slurm.job(number)["JobState"] == "FAILED")
    assert ranks(slurm)["node1"][-1] == "ended"


def test_a_lost_node_puts_the_job_on_others(slurm: Slurm) -> None:
    number = submit(slurm)
    wait_until(lambda: len(ranks(slurm)) == 2)
    slurm.lose_node("node2")
    wait_until(lambda: slurm.job(number)["Restarts"] == "1")
    for file in slurm.home.glob("rank.*"):
        file.unlink()

    def runs_again() -> bool:
        if slurm.job(number)["JobState"] == "PENDING":  # Slurm waits two minutes by itself
            slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
        return set(ranks(slurm)) == {"node1", "node3"}

    wait_until(runs_again)
    slurm.repair_node("node2")
    wait_until(lambda: slurm.states()["node2"] == "idle")
