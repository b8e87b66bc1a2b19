"""The seam to a cluster: seats are reserved, asked and given back; a lost one is a value, not a mystery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.config import ServerConfig
from models.workload import Workload
from tuner.cluster.seat import Ended
from tuner.seam import Measurement, ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster: its id, its name (by default its address), and its GPUs as the cluster counts them."""

    id: str
    name: str
    gpus: int

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

    def launch(self, config: ServerConfig, number: int) -> ServerInfo:
        """Start a configuration and wait until it is ready."""

    def measure(self, workload: Workload) -> Measurement:
        """Measure one load."""

    def stop(self, number: int) -> Ended:
        """Stop the server; return the files of the trial."""

    def release(self) -> None:
        """Give the seat back; never raises."""


class SeatPool(Protocol):
    """Hands out one seat a node."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Return the nodes that can hold a server."""

    def reserve(self, avoid: Sequence[str] = ()) -> RemoteSeat:
        """Return a seat on a free node, on none whose id is in `avoid` while there is another. Raises NodeLost."""

    def abort(self) -> None:
        """End every seat at once."""

    def close(self) -> None:
        """Let go of the cluster."""
