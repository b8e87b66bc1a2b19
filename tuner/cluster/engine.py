"""An engine over a pool: a launch takes a seat on a free node, and its files come home."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from hwprobe.files import write_own
from models.config import ServerConfig
from models.workload import Workload
from tuner.cluster.ledger import Loss, NodeLedger
from tuner.cluster.pool import NodeLost, RemoteSeat, SeatPool
from tuner.seam import FailureKind, LaunchFailed, Measurement, ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEngine:
    """Launches on the nodes of a pool; `trials` is where files of trials come home to."""

    name: str
    pool: SeatPool
    ledger: NodeLedger
    trials: Path
    # Where a trial was launched last: a second try goes elsewhere.
    last: dict[int, str] = field(default_factory=dict)

    def launch(self, config: ServerConfig, number: int) -> ClusterServer:
        """Reserve a seat and start there. A node that is lost meanwhile is a LaunchFailed of kind node_lost."""
        began_s = time.monotonic()
        try:
            seat = self.pool.reserve([self.last[number]] if number in self.last else [])
        except NodeLost as lost:
            raise self.lost(lost, number, began_s) from lost
        self.last[number] = seat.node.id
        try:
            info = seat.launch(config, number)
        except NodeLost as lost:
            seat.release()
            raise self.lost(lost, number, began_s) from lost
        except LaunchFailed:
            self.give_back(seat, number)
            raise
        return ClusterServer(engine=self, seat=seat, number=number, ready=info, began_s=began_s)

    def lost(self, lost: NodeLost, number: int, began_s: float) -> LaunchFailed:
        """Write the loss down, and return it as a failure that says nothing against the configuration."""
        self.ledger.add(Loss(node=lost.node.name, number=number, why=str(lost)))
        return LaunchFailed(FailureKind.NODE_LOST, str(lost), time.monotonic() - began_s)

    def give_back(self, seat: RemoteSeat, number: int) -> None:
        """Stop what runs in a seat, bring its files home, and release it; a seat that is gone has nothing to give."""
        try:
            for name, data in seat.stop(number).files.items():
                write_own(self.trials / str(number) / name, data.decode(errors="replace"), private=True)
        except NodeLost as lost:
            self.ledger.add(Loss(node=lost.node.name, number=number, why=str(lost)))
        finally:
            seat.release()

    def abort(self) -> None:
        """End every server on every node."""
        self.pool.abort()

    def close(self) -> None:
        """Let go of the cluster."""
        self.pool.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterServer:
    """A server that is ready on a node."""

    engine: ClusterEngine
    seat: RemoteSeat
    number: int
    ready: ServerInfo
    began_s: float

    def info(self) -> ServerInfo:
        return self.ready

    def measure(self, workload: Workload) -> Measurement:
        """Measure on the node. Raises LaunchFailed, of kind node_lost where the node is gone."""
        try:
            return self.seat.measure(workload)
        except NodeLost as lost:
            raise self.engine.lost(lost, self.number, self.began_s) from lost

    def stop(self) -> None:
        """Stop the server and bring its files home."""
        self.engine.give_back(self.seat, self.number)
