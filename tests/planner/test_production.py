"""What production needs of a launch file: metrics, names, keys, room, and a start that ends when it cannot succeed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig
from planner.launch import LaunchSpec, launch_spec
from planner.launch_files.files import export_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.production import Production
from planner.launch_files.targets import Target
from planner.launch_lines.read import launch_of_file
from planner.rules import Severity
from tests.planner.test_check import answered

NEWEST = Version("0.5.23")
R1 = "deepseek-ai/DeepSeek-R1"
KEYED = Production(api_key_file="/etc/sglang/my key", served_name="r1", user="sglang")


def made(target: Target, folder: Path, parameters: Parameters, version: Version = NEWEST) -> Path:
    config = ServerConfig(tp_size=8, mem_fraction_static=0.88, max_running_requests=64)
    spec: LaunchSpec = launch_spec(config, version, model_path=parameters.model_path)
    spec = spec.with_words(parameters.production.words(version, parameters.model_path))
    return export_files(spec, Provenance(lines=()), folder, [target], parameters)[0]


@pytest.mark.parametrize("target", list(Target))
def test_metrics_name_and_reasoning_parser_are_in_every_file(target: Target, tmp_path: Path) -> None:
    words = launch_of_file(made(target, tmp_path, Parameters(production=KEYED))).words
    assert "--enable-metrics" in words
    assert words[words.index("--served-model-name") + 1] == "r1"
    assert words[words.index("--reasoning-parser") + 1] == "deepseek-r1"


def test_what_was_not_wanted_or_is_not_known_to_the_release_is_left_out() -> None:
    assert Production(metrics=False, reasoning_parser="none").words(NEWEST, R1) == []
    assert "--reasoning-parser" not in Production().words(Version("0.4.3"), R1)
    assert "--reasoning-parser" not in Production().words(NEWEST, "moonshotai/Kimi-K2-Instruct")
    found = answered("--model-path r1 --tp 8 " + shlex.join(Production().words(NEWEST, R1)))
    assert not [violation for violation in found.violations if violation.severity is Severity.ERROR]


@pytest.mark.parametrize("target", [target for target in Target if target is not Target.YAML])
def test_a_key_is_read_at_start_and_written_nowhere(target: Target, tmp_path: Path) -> None:
    text = made(target, tmp_path, Parameters(production=KEYED)).read_text()
    assert "--api-key" in text
    source = {
        Target.COMPOSE: "${SGLANG_API_KEY:?", Target.SYSTEMD: "--api-key ${SGLANG_API_KEY}",
        Target.K8S: "secretKeyRef: {name: sglang, key: api-key}",
    }.get(target, "\"$(cat -- '/etc/sglang/my key')\"")  # fmt: skip
    assert source in text
    assert "/ready" not in text, "SGLang answers it only to those who have the key"


def test_kubernetes_asks_for_room_tolerates_gpu_nodes_and_waits_for_a_download(tmp_path: Path) -> None:
    text = made(Target.K8S, tmp_path, Parameters(boot_s=700.0, production=Production(memory_gib=256))).read_text()
    pod = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]
    server = pod["containers"][0]
    assert server["resources"]["requests"] == {"cpu": 64, "memory": "256Gi", "nvidia.com/gpu": 8}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    probe = server["startupProbe"]
    seconds = probe["periodSeconds"] * probe["failureThreshold"]
    assert seconds * 100e6 > 690e9, "a first start downloads 690 GB"
    assert Parameters(boot_s=700.0, model_path="/models/R1").startup_s == 2100
    assert "not into the container's layer" in text


def test_slurm_asks_for_time_cores_and_all_memory(tmp_path: Path) -> None:
    text = made(Target.SLURM, tmp_path, Parameters(production=Production(time_limit="7-00:00:00"))).read_text()
    assert {"#SBATCH --time=7-00:00:00", "#SBATCH --cpus-per-task=64", "#SBATCH --mem=0"} <= set(text.splitlines())


@pytest.mark.parametrize(("shards", "starts"), [(["a", "b"], True), (["a"], False)])
def test_a_script_does_not_start_on_weights_that_are_not_complete(
    tmp_path: Path, shards: list[str], starts: bool
) -> None:
    weights = tmp_path / "DeepSeek R1"
    weights.mkdir()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in shards:
        (weights / f"{shard}.safetensors").write_text("weights")
    script = made(Target.BASH, tmp_path, Parameters(model_path=str(weights), python="/bin/true"))
    ran = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) is starts, ran.stderr
    assert ("b.safetensors" in ran.stderr) is not starts


@pytest.mark.parametrize(("shards", "starts"), [(["a", "b"], True), (["a"], False)])
@pytest.mark.parametrize("target", [Target.COMPOSE, Target.K8S, Target.SYSTEMD])
def test_units_and_manifests_look_at_the_weights_before_they_start(
    tmp_path: Path, target: Target, shards: list[str], starts: bool
) -> None:
    weights = tmp_path / "DeepSeek-R1"
    weights.mkdir()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in shards:
        (weights / f"{shard}.safetensors").write_text("weights")
    text = made(target, tmp_path, Parameters(model_path=str(weights))).read_text()
    ran = subprocess.run(_before_start(target, text), capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) is starts, ran.stderr
    assert ("b.safetensors is missing or empty" in ran.stderr) is not starts
    assert "not complete" not in made(target, tmp_path, Parameters()).read_text(), "a download is not there yet"


def _before_start(target: Target, text: str) -> list[str]:
    """Return the command that the platform runs before the server, or around it."""
    if target is Target.SYSTEMD:
        line = re.search(r"^ExecStartPre=(.*)$", text, re.MULTILINE)
        assert line
        return shlex.split(line[1].replace("$$", "$"))
    documents = [document for document in yaml.safe_load_all(text) if document]
    if target is Target.COMPOSE:
        return [word.replace("$$", "$") for word in documents[0]["services"]["sglang"]["entrypoint"]] + ["true"]
    (check,) = documents[0]["spec"]["template"]["spec"]["initContainers"]
    return [word.replace("$$", "$") for word in check["command"]]


def test_a_unit_runs_as_the_user_asked_for_and_its_start_ends_with_the_server(tmp_path: Path) -> None:
    text = made(Target.SYSTEMD, tmp_path, Parameters(production=replace(KEYED, api_key_file=None))).read_text()
    assert {"User=sglang", "EnvironmentFile=-/etc/sglang/sglang.env"} <= set(text.splitlines())
    assert "DynamicUser" not in text
    waits = re.search(r"^ExecStartPost=(.*)$", text, re.MULTILINE)
    assert waits
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    before = time.monotonic()
    words = shlex.split(waits[1].replace("${MAINPID}", str(dead.pid)).replace(":30000", ":1"))
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    assert time.monotonic() - before < 5.0


@pytest.mark.parametrize(
    "wrong", [{"user": "a b"}, {"time_limit": "soon"}, {"cpus_per_gpu": 0}, {"served_name": "--x"}]
)
def test_what_no_file_could_hold_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="--"):
        Parameters(production=Production(**wrong)).checked()  # type: ignore[arg-type]
