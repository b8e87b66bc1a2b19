"""Engines over the nodes of a Ray cluster: what a seat builds on its node, and the pool that hands seats out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.files import encode_json, write_atomic
from hwprobe.profile import HardwareProfile
from models.serving.estimate import Context
from tuner.choices import EngineName
from tuner.cluster.engine import ClusterEngine
from tuner.cluster.ledger import NodeLedger
from tuner.cluster.require import join
from tuner.engines.build import LiveSettings, emulated_runner, live_engine
from tuner.engines.follower import RankEngine
from tuner.engines.runners import LocalRunner
from tuner.engines.world import World

# A seat ends itself, and a node counts as lost, after so many seconds without an answered beat.
LEASE_S = 15.0
ON_NODES = (EngineName.LOCAL, EngineName.EMULATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetup:
    """What every node needs to know to launch; `hardware` is the machine of a server, of one node or several.

    `python` is the interpreter of the nodes. Of `live` the folder for trials is each node's own.
    """

    hardware: HardwareProfile
    context: Context
    engine: EngineName
    world: World
    live: LiveSettings
    python: str = "python3"

    def __call__(self, scratch: Path) -> RankEngine:
        """Build the engine of a seat in a scratch folder of its node."""
        write_atomic(scratch / "hardware.json", encode_json(self.hardware) + "\n")
        runner = (
            LocalRunner(python=self.python, cwd=scratch)
            if self.engine is EngineName.LOCAL
            else emulated_runner(scratch, self.context, self.world, self.live.seed)
        )
        live = replace(self.live, trials=scratch / "trials")
        return RankEngine(live=live_engine(runner, self.context, live))


def check_on_nodes(engine: EngineName) -> None:
    """Raise InputError for an engine that starts nothing on nodes of a cluster."""
    if engine not in ON_NODES:
        raise InputError(f"--cluster starts servers: --engine local or emulated, not {engine}")


def cluster_engine(address: str, setup: NodeSetup, folder: Path) -> ClusterEngine:
    """Join a cluster and launch on its nodes; losses and the files of trials are kept in `folder`.

    Raises InputError where no cluster answers, or it has too few nodes.
    """
    ray_pool, cluster_file = join(address)
    ledger = NodeLedger(folder)
    pool = ray_pool.RayPool(
        room=ray_pool.Room(gpus=setup.hardware.gpus_per_node, at_once=setup.hardware.nodes, only=cluster_file.only),
        ledger=ledger,
        lease_s=LEASE_S,
    )
    trials = folder / "trials"
    build = replace(setup, python=on_every_node(setup.python))
    return ClusterEngine(name=str(setup.engine), pool=pool, build=build, ledger=ledger, trials=trials)


def on_every_node(python: str) -> str:
    """Return an interpreter as any folder of a node may call it: a relative path is one of this folder."""
    return str(Path(python).absolute()) if "/" in python else python
