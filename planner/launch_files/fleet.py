"""Launch files of a fleet: every server of every role, on which node it stands, and the router before them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import encode_json, write_atomic
from planner.fleets.deployment import BOOTSTRAP_PORT, DEFAULT_POLICY, RECOVERY_FLAGS, ROUTER_PORT, Role
from planner.launch import DIST_PORT, LaunchSpec
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.render import (
    LOOPBACK,
    fleet_values,
    head_lines,
    own_host,
    template_text,
    without_host,
)
from planner.launch_files.targets import Target, check_target

FLEET_TARGETS = (Target.BASH, Target.COMPOSE, Target.K8S, Target.SLURM)
# The last release of the router on PyPI; `smg` goes on with the same flags.
ROUTER_RELEASE = "0.3.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPool:
    """Servers alike: their role, how many, the command of one, and how many of them share a node."""

    role: Role
    servers: int
    spec: LaunchSpec
    per_node: int = 1

    @property
    def nodes(self) -> int:
        """Nodes the pool stands on."""
        return self.servers * self.spec.nnodes if self.per_node == 1 else -(-self.servers // self.per_node)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedServer:
    """One server: its role, its number in the pool, the nodes it stands on, and its place on a shared node.

    On a shared node `slot` counts its servers, `first_gpu` is where this one's GPUs begin.
    """

    pool: FleetPool
    index: int
    nodes: tuple[int, ...]
    slot: int
    first_gpu: int
    port: int

    @property
    def name(self) -> str:
        """A name for logs and files: prefill-0."""
        return f"{self.pool.role}-{self.index}"

    @property
    def role(self) -> str:
        return str(self.pool.role)

    @property
    def bootstrap_port(self) -> int:
        """Where decode servers meet a prefill server; servers of one node have one each."""
        return BOOTSTRAP_PORT + self.slot

    @property
    def words(self) -> list[list[str]]:
        """The command flag by flag, with the port and the GPUs of its place; its address is its node's."""
        words = without_host(self.pool.spec.words)
        words = [["--port", str(self.port)] if flag[0] == "--port" else flag for flag in words]
        if self.slot:
            words.append(["--base-gpu-id", str(self.first_gpu)])
            if self.pool.role is Role.PREFILL:
                words.append(["--disaggregation-bootstrap-port", str(self.bootstrap_port)])
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSpec:
    """A deployment to be written down; `one_node`: all servers of all pools share a single node."""

    name: str
    pools: tuple[FleetPool, ...]
    one_node: bool = False

    @property
    def nodes(self) -> int:
        return 1 if self.one_node else sum(pool.nodes for pool in self.pools)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of a node that servers take, at most."""
        if self.one_node:
            return sum(pool.servers * pool.spec.gpus_per_node for pool in self.pools)
        return max(pool.per_node * pool.spec.gpus_per_node for pool in self.pools)

    @property
    def disaggregated(self) -> bool:
        return any(pool.role is Role.PREFILL for pool in self.pools)

    def placed(self, port: int) -> Iterator[PlacedServer]:
        """Yield every server with its nodes, pool by pool."""
        if self.one_node:
            yield from self._on_one_node(port)
            return
        first = 0
        for pool in self.pools:
            for index in range(pool.servers):
                if pool.per_node > 1:
                    nodes: tuple[int, ...] = (first + index // pool.per_node,)
                else:
                    nodes = tuple(range(first + index * pool.spec.nnodes, first + (index + 1) * pool.spec.nnodes))
                slot = index % pool.per_node
                gpu = slot * pool.spec.gpus_per_node
                yield PlacedServer(pool=pool, index=index, nodes=nodes, slot=slot, first_gpu=gpu, port=port + slot)
            first += pool.nodes

    def _on_one_node(self, port: int) -> Iterator[PlacedServer]:
        slot = gpu = 0
        for pool in self.pools:
            for index in range(pool.servers):
                yield PlacedServer(pool=pool, index=index, nodes=(0,), slot=slot, first_gpu=gpu, port=port + slot)
                slot, gpu = slot + 1, gpu + pool.spec.gpus_per_node

    def on_a_node(self, pool: FleetPool, port: int) -> list[PlacedServer]:
        """Return the servers of a pool that stand on the first of its nodes: its other nodes are like that one."""
        servers = [server for server in self.placed(port) if server.pool is pool]
        return [server for server in servers if server.nodes == servers[0].nodes]

    def router(self, servers: Sequence[PlacedServer], hosts: Sequence[str]) -> list[list[str]]:
        """Return the router's flags; `hosts` names the nodes as the file writes them."""
        flags = [["--pd-disaggregation"]] if self.disaggregated else [["--worker-urls"]]
        for server in servers:
            url = f"http://{hosts[server.nodes[0]]}:{server.port}"
            if server.pool.role is Role.MIXED:
                flags[0].append(url)
            else:
                port = [str(server.bootstrap_port)] if server.pool.role is Role.PREFILL else []
                flags.append([f"--{server.role}", url, *port])
        recovery = [list(flag) for flag in RECOVERY_FLAGS]
        return [*flags, ["--policy", DEFAULT_POLICY], *recovery, ["--port", str(ROUTER_PORT)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFiles:
    """A fleet with its surroundings and where it comes from, ready to be written."""

    fleet: FleetSpec
    parameters: Parameters
    provenance: Provenance

    def texts(self, targets: Sequence[Target]) -> dict[str, str]:
        """Return the files of these targets by name. Raises InputError for one that cannot say the fleet."""
        files: dict[str, str] = {}
        for target in targets:
            if target not in FLEET_TARGETS:
                possible = ", ".join(FLEET_TARGETS)
                raise InputError(f"--target {target} writes one kind of server; a fleet is written as {possible}")
            for pool in self.fleet.pools:
                check_target(target, pool.spec, self.parameters)
            files |= {
                Target.BASH: self._bash,
                Target.COMPOSE: self._compose,
                Target.K8S: self._kubernetes,
                Target.SLURM: self._slurm,
            }[target]()
        return files

    def write(self, folder: Path, targets: Sequence[Target], documents: dict[str, Any] | None = None) -> list[Path]:
        """Write the files, with `documents` by file name beside them; return their paths."""
        texts = self.texts(targets)
        texts["README.md"] = self._text("fleet-readme.md.j2", targets=[str(target) for target in targets])
        texts |= {name: encode_json(document) + "\n" for name, document in (documents or {}).items()}
        for name, text in texts.items():
            write_atomic(folder / name, text, executable=name.endswith(".sh"))
        return [folder / name for name in texts]

    def _bash(self) -> dict[str, str]:
        """One script per role, started on each of its nodes, and the router's."""
        scripts = {
            f"{pool.role}.sh": template_text(
                "launch.sh.j2", fleet_values(Target.BASH, pool.spec, self.parameters, self.provenance)
            )
            for pool in self.fleet.pools
        }
        return scripts | {"router.sh": self._text("fleet-router.sh.j2")}

    def _compose(self) -> dict[str, str]:
        return {"compose.yaml": self._text("fleet-compose.yaml.j2")}

    def _slurm(self) -> dict[str, str]:
        return {"slurm.sh": self._text("fleet-slurm.sh.j2")}

    def _kubernetes(self) -> dict[str, str]:
        """One LeaderWorkerSet per pool, a server a group; the router finds their pods by label."""
        parts = [self._text("fleet-router.yaml.j2")]
        for pool in self.fleet.pools:
            values = fleet_values(Target.K8S, pool.spec, self.parameters, self.provenance)
            values |= {"pool": pool, "bootstrap_port": BOOTSTRAP_PORT, "rdma": self.fleet.nodes > 1}
            parts.append(template_text("fleet-pool.yaml.j2", values))
        return {"kubernetes.yaml": "---\n".join(parts)}

    def _text(self, template: str, **more: Any) -> str:
        servers = list(self.fleet.placed(self.parameters.port))
        first = self.fleet.pools[0].spec
        target = Target.COMPOSE if "compose" in template else Target.BASH
        values = fleet_values(target, first, self.parameters, self.provenance)
        return template_text(
            template,
            values
            | {
                "head": head_lines(self.provenance),
                "router_url": f"http://{own_host(self.parameters.host)}:{ROUTER_PORT}/health",
                "pooled_nodes": any(pool.spec.nnodes > 1 for pool in self.fleet.pools),
                "router_open": self.parameters.host not in LOOPBACK,
                "fleet": self.fleet,
                "servers": servers,
                "router_port": ROUTER_PORT,
                "router_release": ROUTER_RELEASE,
                "bootstrap_port": BOOTSTRAP_PORT,
                "dist_port": DIST_PORT,
                "on_a_node": lambda pool: self.fleet.on_a_node(pool, self.parameters.port),
                "router_of": lambda hosts: self.fleet.router(servers, hosts),
                "settings_of": {
                    str(pool.role): fleet_values(target, pool.spec, self.parameters, self.provenance)["settings"]
                    for pool in self.fleet.pools
                },
                **more,
            },
        )


def fleet_files(fleet: FleetSpec, parameters: Parameters, provenance: Provenance) -> FleetFiles:
    """Return a fleet ready to be written.

    Its servers listen on their node's address, its router on `parameters.host`.
    """
    return FleetFiles(fleet=fleet, parameters=parameters.checked(), provenance=provenance)


def servers_per_node(hardware: str, gpus: int) -> int:
    """Return how many servers of `gpus` GPUs a node of this catalogue name holds; 1 where the name does not say."""
    return max(1, gpus_of_node(hardware) // gpus)


def gpus_of_node(hardware: str) -> int:
    """Return the GPUs of a node of this catalogue name; 0 where the name does not say."""
    named = re.search(r"x(\d+)$", hardware)
    return int(named[1]) if named else 0
