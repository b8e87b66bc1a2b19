"""Launch files of fleets: before the judges of their formats, read back by check, and judged together."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from packaging.version import Version

from models.config import ServerConfig
from planner.fleets.deployment import Role
from planner.launch import launch_spec
from planner.launch_files.fleet import FLEET_TARGETS, FleetFiles, FleetPool, FleetSpec, fleet_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.production import Production
from planner.launch_lines.read import launches_of_file, launches_of_folder

VERSION = Version("0.5.23")
# Flags that `python -m sglang_router.launch_router` 0.3.2 knows (router_args.py of the wheel), of those a fleet needs.
ROUTER_FLAGS = frozenset({
    "--pd-disaggregation", "--prefill", "--decode", "--worker-urls", "--policy", "--host", "--port",
    "--service-discovery", "--service-discovery-namespace", "--service-discovery-port", "--selector",
    "--prefill-selector", "--decode-selector", "--health-check-interval-secs", "--cb-timeout-duration-secs",
})  # fmt: skip


def pool(role: Role, servers: int, config: ServerConfig, per_node: int = 1) -> FleetPool:
    flags = {} if role is Role.MIXED else {"disaggregation_mode": str(role)}
    spec = launch_spec(replace(config, context_length=8192).with_flags(**flags), VERSION)
    return FleetPool(role=role, servers=servers, spec=spec, per_node=per_node)


ONE, TWO, HALF = ServerConfig(tp_size=8), ServerConfig(tp_size=16, nnodes=2), ServerConfig(tp_size=4)
FLEETS = {
    "pd": FleetSpec(name="2P + 1D", pools=(pool(Role.PREFILL, 2, ONE), pool(Role.DECODE, 1, ONE))),
    "pd-two-nodes": FleetSpec(name="1P + 2D", pools=(pool(Role.PREFILL, 1, ONE), pool(Role.DECODE, 2, TWO))),
    "copies": FleetSpec(name="3 x TP8", pools=(pool(Role.MIXED, 3, ONE),)),
    "shared-nodes": FleetSpec(
        name="2P + 2D", pools=(pool(Role.PREFILL, 2, HALF, per_node=2), pool(Role.DECODE, 2, HALF, per_node=2))
    ),
    "one-node": FleetSpec(
        name="1P + 1D", pools=(pool(Role.PREFILL, 1, HALF), pool(Role.DECODE, 1, HALF)), one_node=True
    ),
}
EACH = pytest.mark.parametrize("name", FLEETS)


def files(name: str) -> FleetFiles:
    return fleet_files(FLEETS[name], Parameters(), Provenance(lines=(("made by", "a test"),)))


@EACH
def test_scripts_are_shell_without_complaint(name: str, tmp_path: Path) -> None:
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or "shellcheck"
    for path in files(name).write(tmp_path, FLEET_TARGETS):
        if path.suffix == ".sh":
            done = subprocess.run([program, "--shell=bash", "--exclude=SC2016", str(path)], capture_output=True,
                                  text=True, check=False)  # fmt: skip
            assert (done.returncode, done.stdout) == (0, ""), path


@EACH
def test_compose_follows_its_specification_with_a_profile_per_role(name: str) -> None:
    text = files(name).texts(FLEET_TARGETS)["compose.yaml"]
    compose_spec.PyCompose.from_yaml(text)
    services = yaml.safe_load(text)["services"]
    roles = {str(each.role) for each in FLEETS[name].pools}
    assert {service["profiles"][0] for service in services.values()} == {*roles, "router"}


@EACH
def test_kubernetes_has_a_group_per_server_and_a_router_that_finds_them(name: str) -> None:
    objects = [each for each in yaml.safe_load_all(files(name).texts(FLEET_TARGETS)["kubernetes.yaml"]) if each]
    sets = [each for each in objects if each["kind"] == "LeaderWorkerSet"]
    for each in objects:
        if each["kind"] in ("Deployment", "Service"):
            kubernetes_validate.validate(each, "1.29", strict=True)
    found = {each["metadata"]["name"]: each["spec"] for each in sets}
    for each in FLEETS[name].pools:
        spec = found[f"sglang-{each.role}"]
        assert spec["replicas"] == each.servers
        assert spec["leaderWorkerTemplate"]["size"] == each.spec.nnodes
        labels = spec["leaderWorkerTemplate"]["leaderTemplate"]["metadata"]["labels"]
        assert f"component={labels['component']}" in router_of(objects)
    for word in router_of(objects):
        assert not word.startswith("--") or word in ROUTER_FLAGS, word


def router_of(objects: list[dict[str, Any]]) -> list[str]:
    deployment = next(each for each in objects if each["kind"] == "Deployment")
    words: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return words


@EACH
def test_the_router_is_given_every_server_once_with_flags_it_knows(name: str) -> None:
    fleet = FLEETS[name]
    servers = list(fleet.placed(30000))
    flags = fleet.router(servers, [f"node{number}" for number in range(fleet.nodes)])
    assert {flag[0] for flag in flags} <= ROUTER_FLAGS
    urls = [word for flag in flags for word in flag if word.startswith("http")]
    assert len(urls) == len(set(urls)) == sum(each.servers for each in fleet.pools)


def test_no_two_servers_share_a_node_unless_they_share_its_gpus() -> None:
    for fleet in FLEETS.values():
        places = [(node, server.slot) for server in fleet.placed(30000) for node in server.nodes]
        assert len(places) == len(set(places))
        assert {node for node, _ in places} == set(range(fleet.nodes))


def test_servers_of_one_node_share_its_gpus_and_ports_among_all_roles() -> None:
    fleet = FLEETS["one-node"]
    prefill, decode = fleet.placed(30000)
    assert (prefill.first_gpu, decode.first_gpu) == (0, HALF.gpu_count)
    assert (prefill.port, decode.port) == (30000, 30001)
    assert fleet.gpus_per_node == 2 * HALF.gpu_count
    assert ["--base-gpu-id", str(HALF.gpu_count)] in decode.words


@EACH
@pytest.mark.parametrize("target", ["slurm.sh", "compose.yaml", "kubernetes.yaml"])
def test_a_file_of_all_servers_is_read_back_role_by_role(name: str, target: str, tmp_path: Path) -> None:
    files(name).write(tmp_path, FLEET_TARGETS)
    found = launches_of_file(tmp_path / target)
    modes = {str(each.role) for each in FLEETS[name].pools} - {"mixed"} or {None}
    read = {line.words[line.words.index("--disaggregation-mode") + 1] if "--disaggregation-mode" in line.words else None
            for line in found}  # fmt: skip
    assert read == modes
    for each in FLEETS[name].pools:
        wanted = {word for flag in each.spec.words for word in flag if word.startswith("--")} - {"--host"}
        assert any(wanted <= {*line.words} for line in found)


KEYED = Parameters(production=Production(api_key_file="/etc/sglang/key"))


@EACH
def test_servers_listen_on_their_nodes_address_and_the_router_where_it_is_told(name: str) -> None:
    for texts, router in (
        (files(name).texts(FLEET_TARGETS), "127.0.0.1"),
        (fleet_files(FLEETS[name], Parameters(host="10.1.2.3"), Provenance(lines=())).texts(FLEET_TARGETS), "10.1.2.3"),
    ):
        assert not any("0.0.0.0" in text for text in texts.values())
        compose = yaml.safe_load(texts["compose.yaml"])["services"]
        for role, service in compose.items():
            host = service["command"][service["command"].index("--host") + 1]
            assert host == router if role == "router" else host.startswith("${BIND:?"), role
            assert "no-new-privileges:true" in service["security_opt"]
        assert texts["slurm.sh"].count('--host "$SLURMD_NODENAME"') == sum(each.servers for each in FLEETS[name].pools)
        assert f"--host {router}" in texts["slurm.sh"]
        assert f"--host {router}" in texts["router.sh"]
        assert "#SBATCH --mem=0" in texts["slurm.sh"]
        assert "missing or empty" in texts["slurm.sh"]


@EACH
def test_a_key_is_asked_of_every_server_and_given_to_the_router(name: str) -> None:
    texts = fleet_files(FLEETS[name], KEYED, Provenance(lines=())).texts(FLEET_TARGETS)
    servers = sum(each.servers for each in FLEETS[name].pools)
    assert texts["slurm.sh"].count('--api-key "$KEY"') == servers + 1
    for service in yaml.safe_load(texts["compose.yaml"])["services"].values():
        assert service["command"][service["command"].index("--api-key") + 1].startswith("${SGLANG_API_KEY:?")
    assert texts["kubernetes.yaml"].count("$(SGLANG_API_KEY)") == 1 + sum(2 for _ in FLEETS[name].pools)
    for script, text in texts.items():
        if script.endswith(".sh") and script != "slurm.sh":
            assert '--api-key "$(cat -- /etc/sglang/key)"' in text, script
    without = files(name).texts(FLEET_TARGETS)
    assert all("--api-key (from a secret)" in without[file] for file in ("compose.yaml", "kubernetes.yaml"))
    assert "open to the network" in without["slurm.sh"]


def test_a_folder_gives_each_server_once(tmp_path: Path) -> None:
    files("pd").write(tmp_path, FLEET_TARGETS)
    assert len(launches_of_folder(tmp_path)) == 2
