"""An engine over a pool: a launch takes a seat on a free node, or one a rank, and its files come home."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from hwprobe.files import write_own
from models.config import ServerConfig
from models.workload import Workload
from tuner.cluster.first_death import RankWatch
from tuner.cluster.ledger import Loss, NodeLedger
from tuner.cluster.pool import NodeLost, RemoteSeat, SeatPool
from tuner.cluster.seat import Build
from tuner.seam import FailureKind, LaunchFailed, LaunchOrder, Measurement, Rank, ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEngine:
    """Launches on the nodes of a pool; `trials` is where files of trials come home to.

    `ran` are the nodes that a configuration was launched on: when it is launched again, it goes elsewhere.
    `written` are losses in the ledger, by node and trial, whose seats have not been given back yet.
    """

    name: str
    pool: SeatPool
    build: Build
    ledger: NodeLedger
    trials: Path
    ran: dict[ServerConfig, set[str]] = field(default_factory=dict)
    written: set[tuple[str, int]] = field(default_factory=set)

    def remember(self, launched: Iterable[tuple[ServerConfig, Sequence[str]]]) -> None:
        """Learn on which nodes configurations were launched in earlier sessions of a run."""
        for config, nodes in launched:
            self.ran.setdefault(config, set()).update(nodes)

    def launch(self, config: ServerConfig, number: int) -> ClusterServer:
        """Reserve seats and start there. A node that is lost meanwhile is a LaunchFailed of kind node_lost."""
        return self.launch_order(LaunchOrder(config=config, number=number))

    def launch_order(self, order: LaunchOrder) -> ClusterServer:
        """Launch what is ordered; a server over several nodes takes a seat on each."""
        began_s = time.monotonic()
        ran = self.ran.setdefault(order.config, set())
        try:
            lost_there = self.ledger.lost_in(order.number)
            seats = self.pool.reserve(order.config.nnodes, self.build, frozenset(ran), lost_there)
        except NodeLost as lost:
            raise self.lost(lost, order.number, began_s) from lost
        ran.update(seat.node.name for seat in seats)
        with ExitStack() as undo:
            undo.callback(self.give_back, seats, order.number)
            watch = RankWatch(seats)
            undo.callback(watch.close)
            server = ClusterServer(
                engine=self, seats=tuple(seats), number=order.number, watch=watch, began_s=began_s,
                ready=self._started(seats, order, watch, began_s),
            )  # fmt: skip
            undo.pop_all()
        return server

    def _started(self, seats: Sequence[RemoteSeat], order: LaunchOrder, watch: RankWatch, began_s: float) -> ServerInfo:
        """Start every rank, and wait for the first one's readiness, which is the server's."""
        try:
            try:
                meet_at = seats[0].meeting_point() if len(seats) > 1 else ""
                for index, seat in enumerate(seats[1:], start=1):
                    _follow(seat, replace(order, rank=Rank(index=index, meet_at=meet_at)))
                info = seats[0].launch(replace(order, rank=Rank(index=0, meet_at=meet_at) if meet_at else None))
                for seat in seats[1:]:
                    seat.info()  # its figures are kept beside its log
            except LaunchFailed as failure:
                raise watch.decided(failure) from failure
        except NodeLost as lost:
            raise self.lost(lost, order.number, began_s) from lost
        place = info.place and replace(info.place, beside=tuple(seat.node.name for seat in seats[1:]))
        return replace(info, place=place)

    def lost(self, lost: NodeLost, number: int, began_s: float) -> LaunchFailed:
        """Write the loss down, and return it as a failure that says nothing against the configuration."""
        self.ledger.add(Loss(node=lost.node.name, number=number, why=str(lost)))
        self.written.add((lost.node.name, number))
        return LaunchFailed(FailureKind.NODE_LOST, str(lost), time.monotonic() - began_s)

    def give_back(self, seats: Sequence[RemoteSeat], number: int) -> None:
        """Stop all ranks together, since each waits for the first one's word; bring their files home; release."""
        with ThreadPoolExecutor(len(seats)) as threads:
            list(threads.map(lambda rank: self._give_back(seats[rank], number, rank), range(len(seats))))

    def _give_back(self, seat: RemoteSeat, number: int, rank: int) -> None:
        """Stop what runs in a seat; one that is gone has nothing to give. Files of rank 2 begin with `rank-2.`."""
        prefix = f"rank-{rank}." if rank else ""
        try:
            for name, data in seat.stop(number).files.items():
                file = self.trials / str(number) / f"{prefix}{name}"
                write_own(file, data.decode(errors="replace"), private=True)
        except NodeLost as lost:
            if (lost.node.name, number) not in self.written:  # else it was lost once: while it launched or measured
                self.ledger.add(Loss(node=lost.node.name, number=number, why=str(lost)))
        finally:
            self.written.discard((seat.node.name, number))
            seat.release()

    def abort(self) -> None:
        """End every server on every node."""
        self.pool.abort()

    def close(self) -> None:
        """Let go of the cluster."""
        self.pool.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterServer:
    """A server that is ready, on one node or several; the first seat holds rank 0 and the load generator."""

    engine: ClusterEngine
    seats: tuple[RemoteSeat, ...]
    number: int
    ready: ServerInfo
    watch: RankWatch
    began_s: float

    def info(self) -> ServerInfo:
        return self.ready

    def measure(self, workload: Workload) -> Measurement:
        """Measure beside rank 0. Raises LaunchFailed, of kind node_lost where a node is gone."""
        try:
            try:
                return self.seats[0].measure(workload)
            except LaunchFailed as failure:
                raise self.watch.decided(failure) from failure
        except NodeLost as lost:
            raise self.engine.lost(lost, self.number, self.began_s) from lost

    def stop(self) -> None:
        """Stop all ranks and bring their files home."""
        self.watch.close()
        self.engine.give_back(self.seats, self.number)


def _follow(seat: RemoteSeat, order: LaunchOrder) -> None:
    """Start a rank beyond the first. Raises LaunchFailed, naming its node, and NodeLost."""
    try:
        seat.launch(order)
    except LaunchFailed as failure:
        raise LaunchFailed(failure.kind, f"on {seat.node}: {failure.evidence}", failure.seconds) from failure
