"""The door to the one module that imports ray: opened when a command names a cluster."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

from hwprobe.errors import InputError
from tuner.cluster.found_nodes import ClusterFile, read_cluster


def join(cluster: str) -> tuple[ModuleType, ClusterFile]:
    """Join what --cluster names; return `tuner.cluster.ray_pool`, and which nodes are ours.

    Raises InputError where Ray is not installed, no cluster answers, or a cluster file is wrong.
    """
    if find_spec("ray") is None:
        raise InputError("--cluster needs ray: in the checkout, pip install -e '.[cluster]'")
    from tuner.cluster import ray_pool

    cluster_file = read_cluster(cluster)
    ray_pool.connect(cluster_file.ray)
    return ray_pool, cluster_file
