"""Measured figures of nodes side by side: which node is slow, and in what. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from hwprobe.expected import SIBLING_TOLERANCE
from hwprobe.findings import LABELS, ProbeFinding, findings
from hwprobe.profile import HardwareProfile
from hwprobe.session import BUSY_HOST

HOST = "host"
# What is called slow is listed from the widest gap on, so many figures of it.
MOST_FIGURES = 4


def slow_nodes(profiles: Mapping[str, HardwareProfile]) -> dict[str, str]:
    """Return by node what of it is slower than the median of the other nodes with such cards, in a sentence.

    Nodes that are not slow are left out. Of several GPUs the slowest counts: a server waits for it. A gap must be wider
    than siblings differ by (SIBLING_TOLERANCE) and than both sides' own spread. Host figures taken while the host was
    busy are not compared.
    """
    figures = {name: dict(_comparable(profile)) for name, profile in profiles.items()}
    cards = {name: {gpu.name for gpu in profile.gpus} for name, profile in profiles.items()}
    sentences = {}
    for name, own in figures.items():
        others = [other for node, other in figures.items() if node != name and cards[node] == cards[name]]
        gaps = sorted(filter(None, (_gap(finding, key, others) for key, finding in own.items())), reverse=True)
        if gaps:
            sentences[name] = "it is slow: " + ", ".join(text for _, text in gaps[:MOST_FIGURES])
    return sentences


def told(profile: HardwareProfile) -> str:
    """Return the figures that nodes are compared by, in a line; empty where nothing was measured."""
    return ", ".join(f"{item.label} {item.worst:,.4g} {item.unit}" for item in findings(profile) if _is_headline(item))


def host_was_busy(profile: HardwareProfile) -> bool:
    """Say whether other work lowered what was measured of the host."""
    return any(warning.startswith(BUSY_HOST) for warning in profile.warnings)


def _comparable(profile: HardwareProfile) -> Iterator[tuple[tuple[str, str], ProbeFinding]]:
    busy = host_was_busy(profile)
    for finding in findings(profile):
        if _is_headline(finding) and not (busy and finding.where == HOST):
            yield ("GPU" if "GPU" in finding.where else finding.where, finding.quantity), finding


def _is_headline(finding: ProbeFinding) -> bool:
    return finding.quantity in LABELS or finding.where.endswith("ranks")


def _gap(
    own: ProbeFinding, key: tuple[str, str], others: list[dict[tuple[str, str], ProbeFinding]]
) -> tuple[float, str] | None:
    """Return how much slower than the others a figure is, None within what equal nodes differ by."""
    theirs = [finding for other in others if (finding := other.get(key)) is not None]
    if not theirs:
        return None
    usual = median(finding.worst for finding in theirs)
    gap = own.worst / usual - 1.0 if own.is_time else 1.0 - own.worst / usual
    spread = (own.spread or 0.0) + median(finding.spread or 0.0 for finding in theirs)
    if gap <= max(SIBLING_TOLERANCE, spread):
        return None
    worse = "above" if own.is_time else "below"
    compared = "the other nodes" if len(theirs) > 1 else "the other node"
    where = "host's " if key[0] == HOST else ""
    figures = f"{own.worst:,.4g} against {usual:,.4g} {own.unit}"
    return gap, f"{where}{own.label} {gap:.0%} {worse} {compared} ({figures})"
