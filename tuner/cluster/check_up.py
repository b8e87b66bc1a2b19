"""A look at every node of a cluster before anything is launched there."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from hwprobe.files import encode_json, write_own
from hwprobe.profile import HardwareProfile, read_profile
from tuner import __version__
from tuner.cluster.node_figures import slow_nodes, told
from tuner.cluster.node_report import NodeReport
from tuner.cluster.pool import Node
from tuner.cluster.require import join

# Clocks further apart than this make times of one run contradict each other.
MOST_CLOCK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinding:
    """A node: what it is in words, and what would falsify measurements or end servers there. `broken`: no answer.

    `measured` is what was measured there in words, empty where nothing was.
    """

    node: str
    summary: str
    complaints: tuple[str, ...] = ()
    broken: bool = False
    measured: str = ""
    report: NodeReport | None = None


def examine_cluster(address: str, *, measure: bool = False, tell: Callable[[str], None] = print) -> list[NodeFinding]:
    """Ask every node, and `measure` it if asked to. Raises InputError where no cluster answers or Ray is missing."""
    ray_pool, cluster_file = join(address)
    look = _Look(ray_pool=ray_pool, only=cluster_file.only, tell=tell)
    findings = look.findings(measure=measure)
    ray_pool.disconnect()
    return findings


def first_look(address: str, folder: Path, *, measure: bool, tell: Callable[[str], None]) -> None:
    """Ask every node of a cluster, measure it if asked to; tell in sentences what is wrong with each or sets it apart.

    What hwprobe finds on a node is kept as nodes/NAME.json, for `sgtune probe --compare`; what is measured there
    already, by an earlier session of the run, is not measured again.
    """
    ray_pool, cluster_file = join(address)
    look = _Look(ray_pool=ray_pool, only=cluster_file.only, tell=tell, folder=folder / "nodes")
    for finding in look.findings(measure=measure):
        for complaint in finding.complaints:
            tell(f"node {finding.node}: {complaint}")
        if finding.broken:
            tell(f"node {finding.node}: {finding.summary}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """A look at a cluster's nodes, at `only` some where a cluster file names them; `folder` keeps their profiles."""

    ray_pool: ModuleType
    only: frozenset[str]
    tell: Callable[[str], None]
    folder: Path | None = None

    def findings(self, *, measure: bool) -> list[NodeFinding]:
        asked_s = time.time()
        answers = [
            (node, answer)
            for node, answer in self.ray_pool.survey()
            if not self.only or {node.name, node.address} & self.only
        ]
        reports = {node.name: answer for node, answer in answers if isinstance(answer, NodeReport)}
        odd = set_apart(reports)
        findings = [_finding(node, answer, asked_s) for node, answer in answers]
        findings = [replace(item, complaints=(*item.complaints, *odd.get(item.node, ()))) for item in findings]
        if measure:
            nodes = launchable([node for node, answer in answers if isinstance(answer, NodeReport)])
            findings = with_figures(findings, self._measured(nodes, reports))
        if self.folder is not None:
            for finding in findings:
                if finding.report is not None and (finding.measured or finding.report.gpus):
                    write_own(self._file(self.folder, finding.node), encode_json(finding.report.profile) + "\n")
        return findings

    def _measured(self, nodes: Sequence[Node], reports: Mapping[str, NodeReport]) -> dict[str, HardwareProfile | str]:
        """Return figures by node: those kept of the same machine, else measured now, or why there are none."""
        profiles: dict[str, HardwareProfile | str] = {}
        for node in nodes:
            if (earlier := self._kept(node.name, reports[node.name])) is not None:
                profiles[node.name] = earlier
        by_host: dict[str, list[Node]] = {}
        for node in nodes:
            if node.name not in profiles:
                by_host.setdefault(reports[node.name].host, []).append(node)
        if by_host:
            count = sum(map(len, by_host.values()))
            self.tell(f"{count} node{'s are' if count > 1 else ' is'} measured: memory, GEMMs, links (minutes)")
        for node, answer in self.ray_pool.measured(list(by_host.values())):
            profiles[node.name] = answer
        return profiles

    def _kept(self, name: str, report: NodeReport) -> HardwareProfile | None:
        file = self._file(self.folder, name) if self.folder is not None else None
        if file is None or not file.is_file():
            return None
        earlier, now = read_profile(file), report.profile
        same = [gpu.uuid for gpu in earlier.gpus] == [gpu.uuid for gpu in now.gpus] and (
            earlier.host is not None and now.host is not None and earlier.host.cpu == now.host.cpu
        )
        return earlier if same and told(earlier) else None

    def _file(self, folder: Path, name: str) -> Path:
        return folder / (re.sub(r"[^\w.-]", "-", name) + ".json")


def launchable(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that hold GPUs in the cluster, as a head often does not; all where none does."""
    return [node for node in nodes if node.gpus] or list(nodes)


def with_figures(findings: Sequence[NodeFinding], profiles: Mapping[str, HardwareProfile | str]) -> list[NodeFinding]:
    """Return findings with what was measured of each node, which one is slow, and what could not be measured."""
    slow = slow_nodes({name: profile for name, profile in profiles.items() if isinstance(profile, HardwareProfile)})
    return [_with_figures(item, profiles.get(item.node), slow.get(item.node)) for item in findings]


def _with_figures(finding: NodeFinding, profile: HardwareProfile | str | None, slow: str | None) -> NodeFinding:
    if finding.report is None or profile is None:
        return finding
    if isinstance(profile, str):
        return replace(finding, complaints=(*finding.complaints, f"not measured: {profile}"))
    noted = {*finding.report.profile.warnings, *finding.complaints}
    more = [*([slow] if slow else []), *(warning for warning in profile.warnings if warning not in noted)]
    return replace(
        finding,
        measured=told(profile),
        complaints=(*finding.complaints, *more),
        report=replace(finding.report, profile=profile),
    )


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
