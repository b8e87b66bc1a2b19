"""A deployment that was launched, as the fleet that launch files are written of, and what verify reads back."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from planner.fleets.deployment import Deployment, Role
from planner.launch import launch_spec
from planner.launch_files.fleet import FleetPool, FleetSpec, gpus_of_node, servers_per_node
from planner.launch_files.parameters import Parameters
from planner.launch_files.record import Record
from planner.sglang.secret_flags import without_secrets
from tuner.choices import EngineName
from tuner.evidence.trial import Manifest

DEPLOYMENT_FILE = "deployment.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPool:
    """Servers alike of a written deployment: the command of one is in the script of its role."""

    role: Role
    servers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDeployment:
    """deployment.json of a bundle: its pools, and the figures of the whole."""

    name: str
    pools: tuple[WrittenPool, ...]
    record: Record


def fleet_of(deployment: Deployment, manifest: Manifest, parameters: Parameters) -> FleetSpec:
    """Return the fleet: the command of one server of each pool, with the flags its run gave to every server."""
    version = Version(manifest.sglang_version)
    # the local engine starts all servers on its own machine
    one_node = manifest.engine == EngineName.LOCAL or deployment.gpus <= gpus_of_node(manifest.hardware)
    pools = []
    for pool in deployment.pools:
        spec = launch_spec(
            pool.config, version, model_path=parameters.model_path, host=parameters.host, port=parameters.port
        )
        words = [
            *pool.own_flags,
            *parameters.production.words(version, manifest.model),
            *without_secrets(manifest.server_flags),
        ]
        per_node = 1 if one_node else servers_per_node(manifest.hardware, spec.gpus_per_node)
        pools.append(
            FleetPool(role=pool.role, servers=pool.servers, spec=spec.with_words(words), per_node=per_node)
        )  # fmt: skip
    return FleetSpec(name=deployment.name, pools=tuple(pools), one_node=one_node)


def written(deployment: Deployment, record: Record) -> WrittenDeployment:
    """Return what verify reads of a deployment."""
    pools = tuple(WrittenPool(role=pool.role, servers=pool.servers) for pool in deployment.pools)
    return WrittenDeployment(name=deployment.name, pools=pools, record=record)
