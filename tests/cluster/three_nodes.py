"""A real Ray cluster on this machine: three raylets with eight logical GPUs each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray.cluster_utils import Cluster

ENVIRONMENT = {
    "RAY_worker_niceness": "0", "RAY_worker_oom_score_adjustment": "0", "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1",
}  # fmt: skip
GPUS = 8


@dataclass(slots=True)
class ThreeNodes:
    """The cluster, its address, and the raylets beside the head."""

    cluster: Cluster
    raylets: list[object] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@contextmanager
def three_nodes() -> Iterator[ThreeNodes]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    small = {"num_cpus": 4, "num_gpus": GPUS, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False, "node_name": "n1"})
    try:
        raylets = [cluster.add_node(**small, node_name=name) for name in ("n2", "n3")]
        yield ThreeNodes(cluster, raylets)
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
