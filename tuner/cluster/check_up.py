"""A look at every node of a cluster before anything is launched there."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tuner import __version__
from tuner.cluster.node_report import NodeReport
from tuner.cluster.pool import Node
from tuner.cluster.require import join

# Clocks further apart than this make times of one run contradict each other.
MOST_CLOCK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinding:
    """A node: what it is in words, and what would falsify measurements or end servers there. `broken`: no answer."""

    node: str
    summary: str
    complaints: tuple[str, ...] = ()
    broken: bool = False
    report: NodeReport | None = None


def examine_cluster(address: str) -> list[NodeFinding]:
    """Ask every node. Raises InputError where no cluster answers or Ray is missing."""
    ray_pool, _ = join(address)
    asked_s = time.time()
    found = [_finding(node, answer, asked_s) for node, answer in ray_pool.survey()]
    ray_pool.disconnect()
    return found


def _finding(node: Node, answer: NodeReport | str, asked_s: float) -> NodeFinding:
    if isinstance(answer, str):
        return NodeFinding(node=node.name, summary=f"no answer: {answer}", broken=True)
    complaints = list(answer.complaints)
    if answer.sgtune != __version__:
        complaints.append(f"sgtune {answer.sgtune} there, {__version__} here: install the same on every node")
    if abs(answer.clock_s - asked_s) > MOST_CLOCK_S + (time.time() - asked_s):
        complaints.append(f"its clock is {answer.clock_s - asked_s:+.0f} s off: start NTP or chrony")
    if len(answer.gpus) != node.gpus:
        complaints.append(f"the cluster counts {node.gpus} GPUs there, the driver {len(answer.gpus)}")
    gpus = f"{node.gpus} GPUs" + (f" ({answer.gpus[0]})" if answer.gpus else "")
    summary = (
        f"{answer.host}, {gpus}, {answer.cpus} CPUs, {answer.memory_gib:.0f} GiB, Python {answer.python}, "
        f"Ray {answer.ray}"
    )
    return NodeFinding(node=node.name, summary=summary, complaints=tuple(complaints), report=answer)
