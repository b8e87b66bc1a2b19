"""examples/cluster: scripts before shellcheck, pods before Kubernetes' schemas, and commands that sgtune takes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples/cluster"
# KubeRay's API ray.io/v1: what a RayJob and its cluster may say here.
OF_JOB = {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
OF_CLUSTER = {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
OF_WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.mark.parametrize("name", ["by-hand.sh", "slurm.sh"])
def test_shellcheck_has_no_complaint(name: str) -> None:
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or "shellcheck"
    done = subprocess.run([program, str(EXAMPLES / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def job() -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text()))


@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_the_pods_of_the_rayjob_follow_kubernetes_schemas(version: str) -> None:
    spec = job()["spec"]
    assert set(spec) == OF_JOB
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == OF_CLUSTER
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == OF_WORKERS
    for group in (cluster["headGroupSpec"], workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"]
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]


def test_the_commands_are_ones_that_sgtune_takes(sgtune: Callable[..., Any]) -> None:
    """Without the cluster: what is left is planned by --dry-run."""
    words = shlex.split(job()["spec"]["entrypoint"])
    script = (EXAMPLES / "slurm.sh").read_text()
    command = script[script.index("sgtune tune --hardware") :].replace("\\\n", " ").replace('"${HARDWARE:-', "")
    command = command.replace('}"', "").replace('"${SGLANG_PYTHON:-', "").replace('"$@"', "")
    load = ["--isl", "1000", "--osl", "1000", "--concurrency", "256"]
    for line in (words[1:], [*shlex.split(command)[1:], *load]):
        at = line.index("--cluster")
        assert line[at + 1] == "auto"
        ran = sgtune(*line, "--dry-run")
        assert ran.code == 0, ran.err
