"""Launch files before the judges of their own formats: shellcheck, the compose specification, Kubernetes' schemas."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from packaging.version import Version

from models.config import ServerConfig
from planner.launch import launch_spec
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.render import render
from planner.launch_files.targets import Target

PROVENANCE = Provenance(lines=(("made by", "a test"),))
CONFIGS = {"one-node": ServerConfig(tp_size=8), "two-nodes": ServerConfig(tp_size=16, nnodes=2)}
AWKWARD = Parameters(model_path="/models/R1 'é' $HOME %h", cache="/fast disk/cache", boot_s=700.0)
EVERY = pytest.mark.parametrize("parameters", [Parameters(), AWKWARD], ids=["hub", "awkward"])
NODES = pytest.mark.parametrize("name", CONFIGS)


def text_of(target: Target, name: str, parameters: Parameters) -> str:
    spec = launch_spec(CONFIGS[name], Version("0.5.23"), model_path=parameters.model_path)
    return render(target, spec, parameters, PROVENANCE)


@NODES
@EVERY
@pytest.mark.parametrize("target", [Target.BASH, Target.DOCKER, Target.SLURM])
def test_shellcheck_has_no_complaint(target: Target, name: str, parameters: Parameters, tmp_path: Path) -> None:
    script = tmp_path / target.file_name
    script.write_text(text_of(target, name, parameters), encoding="utf-8")
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or "shellcheck"
    literal = ["--exclude=SC2016"] if parameters is AWKWARD else []  # its $HOME is meant as it stands
    done = subprocess.run([program, "--shell=bash", *literal, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@NODES
@EVERY
def test_compose_files_follow_the_specification(name: str, parameters: Parameters) -> None:
    found = compose_spec.PyCompose.from_yaml(text_of(Target.COMPOSE, name, parameters))
    assert found.service_names() == ["sglang"]


def test_the_compose_judge_would_complain() -> None:
    with pytest.raises(Exception, match="nonsense"):
        compose_spec.PyCompose.from_yaml(text_of(Target.COMPOSE, "one-node", Parameters()) + "nonsense: 1\n")


def objects(name: str, parameters: Parameters) -> list[dict[str, Any]]:
    """Return the objects; of a LeaderWorkerSet, which has a schema of its own, the two pods it makes."""
    work, service = yaml.safe_load_all(text_of(Target.K8S, name, parameters))
    if work["kind"] == "Deployment":
        return [work, service]
    group = work["spec"]["leaderWorkerTemplate"]
    assert set(group) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    templates = (group["leaderTemplate"], group["workerTemplate"])
    return [*({"apiVersion": "v1", "kind": "Pod", **template} for template in templates), service]


@NODES
@EVERY
@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_kubernetes_objects_follow_the_published_schemas(name: str, parameters: Parameters, version: str) -> None:
    for found in objects(name, parameters):
        kubernetes_validate.validate(found, version, strict=True)


def test_the_kubernetes_judge_would_complain() -> None:
    deployment = objects("one-node", Parameters())[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="argz"):
        kubernetes_validate.validate(deployment, "1.33", strict=True)
