"""Several launches at once: who starts them, and which ends first. In virtual time, or in threads of this process."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from tuner.evidence.flight import Flight
from tuner.evidence.trial import TrialRecord

Launch = Callable[[], TrialRecord]


class Airspace(Protocol):
    """Carries launches, several at a time, and hands over their records in the order in which they end."""

    @property
    def slots(self) -> int:
        """Return how many launches may be in flight."""

    @property
    def elapsed_s(self) -> float:
        """Return the seconds on the clock of the run: virtual ones, or those of this session."""

    def start(self, flight: Flight, launch: Launch) -> None:
        """Begin a launch."""

    def next(self) -> TrialRecord:
        """Wait until a launch ends; return its record. Raises what the launch raised."""

    def close(self) -> None:
        """Give up what is still in flight."""


class VirtualAirspace:
    """Launches of a simulated engine: each is over at once, and its record waits until virtual time has come to it."""

    def __init__(self, slots: int, flights: Sequence[Flight], records: Sequence[TrialRecord]) -> None:
        """Take up the clock where earlier sessions left it: a flight began when the last record it knew was made."""
        self.slots = slots
        self._ends: list[tuple[float, int, TrialRecord]] = []
        self._made_s = [0.0]
        began_s: dict[int, float] = {}
        spent_s = {record.number: record.spent_s for record in records}
        for flight in flights:
            began_s[flight.number] = self._at(flight.known, records, began_s, spent_s)
        self.elapsed_s = self._at(len(records), records, began_s, spent_s)
        self._began_s = began_s

    def _at(
        self, count: int, records: Sequence[TrialRecord], began_s: dict[int, float], spent_s: dict[int, float]
    ) -> float:
        """Return when the first `count` records had been made."""
        while len(self._made_s) <= count:
            record = records[len(self._made_s) - 1]
            ended_s = began_s[record.number] + spent_s[record.number] if record.number in began_s else 0.0
            self._made_s.append(max(self._made_s[-1], ended_s))
        return self._made_s[count]

    def start(self, flight: Flight, launch: Launch) -> None:
        record = launch()
        began_s = self._began_s.setdefault(flight.number, self.elapsed_s)
        heapq.heappush(self._ends, (began_s + record.spent_s, flight.number, record))

    def next(self) -> TrialRecord:
        ended_s, _, record = heapq.heappop(self._ends)
        self.elapsed_s = max(self.elapsed_s, ended_s)
        return record

    def close(self) -> None:
        """Nothing flies."""


class ThreadAirspace:
    """Launches of real servers, a thread each; `abort` ends the servers that run, so that their threads end."""

    def __init__(self, slots: int, abort: Callable[[], None]) -> None:
        self.slots = slots
        self._abort = abort
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="launch")
        self._flying: dict[Future[TrialRecord], int] = {}
        self._began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    def start(self, flight: Flight, launch: Launch) -> None:
        self._flying[self._threads.submit(launch)] = flight.number

    def next(self) -> TrialRecord:
        finished, _ = wait(self._flying, return_when=FIRST_COMPLETED)
        ended = min(finished, key=self._flying.__getitem__)
        del self._flying[ended]
        return ended.result()

    def close(self) -> None:
        if not all(future.done() for future in self._flying):
            self._abort()
        self._threads.shutdown(cancel_futures=True)
