"""The seam to a cluster: seats are reserved, asked and given back; a lost one is a value, not a mystery."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.workload import Workload
from tuner.cluster.seat import Build, Ended
from tuner.seam import Death, LaunchOrder, Measurement, ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster: its id, its name (by default its address), its address, and the GPUs counted there."""

    id: str
    name: str
    gpus: int
    address: str = ""

    def __str__(self) -> str:
        return f"node {self.name}"


class NodeLost(Exception):
    """A seat or its node is gone, or does not answer within its lease."""

    def __init__(self, node: Node, why: str) -> None:
        self.node = node
        super().__init__(f"{node} is lost: {why}")


class RemoteSeat(Protocol):
    """A seat on a node. Every method raises NodeLost, and LaunchFailed where the seat's engine did."""

    @property
    def node(self) -> Node:
        """Return where it is."""

    def meeting_point(self) -> str:
        """Return HOST:PORT of this node where the ranks of a server may meet."""

    def launch(self, order: LaunchOrder) -> ServerInfo:
        """Start what is ordered and wait until it is ready; a rank beyond the first is only started."""

    def info(self) -> ServerInfo:
        """Return what a rank that is ready says of itself."""

    def measure(self, workload: Workload) -> Measurement:
        """Measure one load."""

    def death(self) -> Death | None:
        """Return how the server here ended, None while it runs."""

    def halt(self) -> None:
        """End the server here, whoever waits for it."""

    def stop(self, number: int) -> Ended:
        """Stop the server; return the files of the trial."""

    def release(self) -> None:
        """Give the seat back; never raises."""


class SeatPool(Protocol):
    """Hands out one seat a node."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Return the nodes that can hold a server."""

    def reserve(
        self, count: int, build: Build, avoid: Collection[str] = (), lost: Collection[str] = ()
    ) -> Sequence[RemoteSeat]:
        """Return seats on `count` free nodes, on none whose name is in `avoid` while others are free.

        Nodes in `lost` are only taken where too few others live: a free one is not worth the launch's last try.
        Each seat runs the engine that `build` makes there. Raises NodeLost.
        """

    def abort(self) -> None:
        """End every seat at once."""

    def close(self) -> None:
        """Let go of the cluster."""
