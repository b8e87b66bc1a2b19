"""A server over several nodes: all of its ranks watched, and the first that died decides why all of them are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.cluster.pool import NodeLost, RemoteSeat
from tuner.seam import FailureKind, LaunchFailed

LOOK_S = 1.0
# A rank that lost another says so at once; the other's own server may take this long to end (SGLang's five seconds
# of diagnostics, and its own look at its children).
SETTLE_S = 12.0
# What the others die of when one is gone.
CONSEQUENCES = frozenset({FailureKind.NCCL})


@dataclass(frozen=True, slots=True)
class RankDeath:
    """A rank that ended, when on our clock, and why."""

    rank: int
    at_s: float
    failure: LaunchFailed

    @property
    def order(self) -> tuple[bool, float]:
        """Causes come before what follows from them, and the earlier before the later."""
        return (self.failure.kind in CONSEQUENCES, self.at_s)


class RankWatch:
    """Looks at every rank beyond the first while the first is waited for; ends the first when another is gone."""

    def __init__(self, seats: Sequence[RemoteSeat]) -> None:
        self._seats = seats
        self._deaths: dict[int, RankDeath] = {}
        self._lost: NodeLost | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        if len(seats) > 1:
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def decided(self, failure: LaunchFailed) -> LaunchFailed:
        """Return why the server is gone, after the first rank failed. Raises NodeLost where it was a node."""
        if len(self._seats) == 1:
            return failure
        self._deaths[0] = RankDeath(0, time.monotonic(), failure)
        until = time.monotonic() + SETTLE_S
        while failure.kind in CONSEQUENCES and len(self._deaths) == 1 and time.monotonic() < until:
            self._look()
            self._over.wait(LOOK_S)
        self._look()
        if self._lost is not None:
            raise self._lost
        first = min(self._deaths.values(), key=lambda death: death.order)
        if first.rank == 0 and first.failure is failure:
            return failure
        where = self._seats[first.rank].node
        evidence = f"rank {first.rank} on {where} was the first to end: {first.failure.evidence}"
        return LaunchFailed(first.failure.kind, evidence, failure.seconds)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()
            if self._deaths or self._lost is not None:
                self._halt_first()
                return

    def _halt_first(self) -> None:
        """End the first rank: alone it waits for the others for minutes. If it was first to go, it says so itself."""
        consequence = self._lost is None and all(d.failure.kind in CONSEQUENCES for d in self._deaths.values())
        if consequence and self._over.wait(SETTLE_S):
            return
        try:
            self._seats[0].halt()
        except NodeLost as lost:
            self._lost = self._lost or lost

    def _look(self) -> None:
        """Ask every rank beyond the first whether it lives."""
        for rank, seat in enumerate(self._seats[1:], start=1):
            if rank in self._deaths or self._lost is not None:
                continue
            try:
                death = seat.death()
            except NodeLost as lost:
                self._lost = lost
                return
            if death is not None:
                self._deaths[rank] = RankDeath(rank, time.monotonic() - death.ago_s, death.failure)
