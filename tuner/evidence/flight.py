"""flight.jsonl: every launch, written before it starts; a launch without a record was interrupted.

A flight holds the number of records when it was chosen, so that a resumed run takes up the same launches in the same
order, and never launches one twice or gives it another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hwprobe.files import append_line, decode_json
from tuner.evidence.chain import Link, sealed, start_of, whole_lines
from tuner.evidence.trial import TrialRecord
from tuner.evidence.trial_lines import EvidenceSpoiled, cut_torn_line

FLIGHT_FILE = "flight.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A launch that was decided: its number, what chose it, how many records were known, and who else was in flight.

    `to_beat` is the best objective then; `repeats` the trial whose configuration is launched again.
    """

    number: int
    source: str
    params: dict[str, Any]
    known: int
    beside: tuple[int, ...] = ()
    to_beat: float | None = None
    repeats: int | None = None


class FlightLog:
    """The file of flights: one fsynced line each, chained to the one before; a torn last line is cut off."""

    def __init__(self, folder: Path) -> None:
        """Read the flights of earlier sessions. Raises EvidenceSpoiled for a changed line."""
        self._path = folder / FLIGHT_FILE
        self._chain = start_of(folder)
        self.flights: list[Flight] = []
        cut_torn_line(self._path)
        for number, line in enumerate(whole_lines(self._path) if self._path.exists() else (), 1):
            link = Link.of(line)
            if not link.follows(self._chain):
                raise EvidenceSpoiled(self._path, f", line {number}: it is not what was written")
            self.flights.append(decode_json(link.body, Flight, f"{self._path}, line {number}"))
            self._chain = link.stated

    def append(self, flight: Flight) -> None:
        """Add a flight: on disk before this returns. Raises SgtuneError where the disk refuses."""
        line, chain = sealed(msgspec.json.encode(flight), self._chain)
        append_line(self._path, line.decode() + "\n")
        self._chain = chain
        self.flights.append(flight)

    def in_the_air(self, records: Sequence[TrialRecord]) -> list[Flight]:
        """Return the flights that have no record, in order."""
        landed = {record.number for record in records}
        return [flight for flight in self.flights if flight.number not in landed]
