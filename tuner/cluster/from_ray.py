"""What nodes a running Ray cluster has, each asked by a process of ours there."""

from __future__ import annotations

from tuner.cluster.found_nodes import FoundCluster, FoundNode, by_name
from tuner.cluster.node_report import NodeReport
from tuner.cluster.pool import Node
from tuner.cluster.require import join


def nodes_of_ray(cluster: str) -> FoundCluster:
    """Ask Ray and its nodes. Raises InputError where no cluster answers."""
    ray_pool, cluster_file = join(cluster)
    try:
        nodes = [_node(node, answer) for node, answer in ray_pool.survey()]
    finally:
        ray_pool.disconnect()
    return FoundCluster(source="ray", nodes=by_name(nodes), ray=cluster_file.ray)


def _node(node: Node, answer: NodeReport | str) -> FoundNode:
    if isinstance(answer, str):
        return FoundNode(name=node.name, address=node.address, gpus=node.gpus, state=f"no answer: {answer}")
    names = set(answer.gpus)
    return FoundNode(
        name=node.name,
        address=node.address,
        gpus=node.gpus,
        gpu=names.pop() if len(names) == 1 else "",
        gpu_memory_mib=answer.gpu_memory_mib,
        cpus=answer.cpus,
        memory_gib=answer.memory_gib,
    )
