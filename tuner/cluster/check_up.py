"""A look at every node of a cluster before anything is launched there."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from hwprobe.files import encode_json, write_own
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
    findings = _examined(ray_pool)
    ray_pool.disconnect()
    return findings


def first_look(address: str, folder: Path) -> list[str]:
    """Ask every node of a cluster that was joined; return what is wrong with each or sets it apart, in sentences.

    What hwprobe finds on a node with GPUs is kept as nodes/NAME.json, for `sgtune probe --compare`.
    """
    ray_pool, cluster_file = join(address)
    notes = []
    for finding in _examined(ray_pool):
        if cluster_file.only and finding.node not in cluster_file.only:
            continue
        notes += [f"node {finding.node}: {complaint}" for complaint in finding.complaints]
        if finding.broken:
            notes.append(f"node {finding.node}: {finding.summary}")
        if finding.report is not None and finding.report.gpus:
            name = re.sub(r"[^\w.-]", "-", finding.node)
            write_own(folder / "nodes" / f"{name}.json", encode_json(finding.report.profile) + "\n")
    return notes


def _examined(ray_pool: ModuleType) -> list[NodeFinding]:
    asked_s = time.time()
    answers = ray_pool.survey()
    odd = set_apart({node.name: answer for node, answer in answers if isinstance(answer, NodeReport)})
    findings = [_finding(node, answer, asked_s) for node, answer in answers]
    return [replace(item, complaints=(*item.complaints, *odd.get(item.node, ()))) for item in findings]


def set_apart(reports: Mapping[str, NodeReport]) -> dict[str, list[str]]:
    """Return by node what of it differs from most others: cards, drivers, CPUs, versions."""
    differences: dict[str, list[str]] = {}
    facts_of = {name: _told(report) for name, report in reports.items()}
    for what in sorted({what for facts in facts_of.values() for what in facts}):
        values = {name: facts.get(what, "none") for name, facts in facts_of.items()}
        usual, count = Counter(values.values()).most_common(1)[0]
        if count * 2 <= len(values):
            usual = ""  # no value is that of most
        for name, value in values.items():
            if value != usual:
                others = f"most nodes have {usual}" if usual else "every node has another"
                differences.setdefault(name, []).append(f"its {what} is {value}, {others}")
    return {name: texts for name, texts in differences.items() if len(reports) > 1}


def _told(report: NodeReport) -> dict[str, str]:
    cards = ", ".join(f"{count} x {name}" for name, count in Counter(report.gpus).items())
    memory = "none" if report.gpu_memory_mib is None else f"{report.gpu_memory_mib:.0f} MiB"
    return {
        "set of GPUs": cards or "none",
        "memory of a GPU": memory,
        "number of CPUs": str(report.cpus),
        "Python": report.python,
        "Ray": report.ray,
        **report.profile.software,
    }


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
