"""What a node does to the launches on it: effects estimated beside those of configurations, and slow nodes named.

log(measured / predicted) of a launch is a sum of normal effects: what all share, the configuration's own, the mean of
its nodes', and the measurement's scatter. Launches of one configuration on several nodes tell the most; the prediction
tells something of the others. Estimates are shrunk towards no effect, as far as the launches leave it open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.evidence.trial import TrialRecord

# One standard deviation (log) of what all launches share, of a configuration's own residual, and of a node's effect.
COMMON, OWN, NODE = 1.0, 0.15, 0.10
LEAST_SCATTER = 0.02
NORMAL_95 = 1.96
# A node is called slow where it costs more than this and 95 % of the belief say that it costs anything.
NOTABLE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEffect:
    """A node against the mean of all: launches on it, and what it does to their rate with a 95 % interval (-0.1: 10 %
    less)."""

    node: str
    launches: int
    effect: float
    interval: tuple[float, float]

    @property
    def slow(self) -> bool:
        """Whether its launches were slower than can be chance, and by enough to matter."""
        return self.effect < -NOTABLE and self.interval[1] < 0.0

    @property
    def sentence(self) -> str:
        low, high = self.interval
        interval = f"95 % interval {low:+.0%} to {high:+.0%}"
        return (
            f"node {self.node} is slow: {self.effect:+.0%} against the others ({interval}, "
            f"{self.launches} launches); see its clocks, temperatures and neighbours, or leave it out"
        )


def node_effects(records: Sequence[TrialRecord]) -> list[NodeEffect]:
    """Return the effect of every node that a launch was measured on, by name; none where fewer than two were."""
    launched = [record for record in records if record.target is not None and record.place is not None]
    names = sorted({name for record in launched if record.place for name in record.place.nodes})
    if len(names) < 2:
        return []
    configs = list(dict.fromkeys(record.config for record in launched))
    on_node = np.array([[_share(record, name) for name in names] for record in launched])
    of_config = np.array([[record.config == config for config in configs] for record in launched], dtype=float)
    scatter = np.array([_scatter(record) for record in launched])
    log_ratios = np.array([math.log(record.over_predicted) for record in launched])
    around = NODE**2 * on_node @ on_node.T + OWN**2 * of_config @ of_config.T + COMMON**2 + np.diag(scatter**2)
    to_nodes = NODE**2 * on_node.T @ np.linalg.inv(around)
    against_mean = np.eye(len(names)) - 1.0 / len(names)
    mean = against_mean @ to_nodes @ log_ratios
    covariance = against_mean @ (NODE**2 * np.eye(len(names)) - NODE**2 * to_nodes @ on_node) @ against_mean.T
    spread = NORMAL_95 * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return [
        NodeEffect(
            node=name,
            launches=int((on_node[:, at] > 0.0).sum()),
            effect=math.expm1(mean[at]),
            interval=(math.expm1(mean[at] - spread[at]), math.expm1(mean[at] + spread[at])),
        )
        for at, name in enumerate(names)
    ]


def _share(record: TrialRecord, name: str) -> float:
    nodes = record.place.nodes if record.place else ()
    return nodes.count(name) / len(nodes)


def _scatter(record: TrialRecord) -> float:
    """Return one standard deviation (log) of a launch's rate."""
    low, high = record.target.output_tok_s_interval if record.target else (1.0, 1.0)
    return max(LEAST_SCATTER, math.log(high / low) / 2.0 / NORMAL_95) if 0.0 < low <= high else 1.0
