"""Which nodes were lost in a run: one that was lost twice gets no launch any more."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hwprobe.errors import InputError
from hwprobe.files import encode_json, read_bytes, write_own

NODES_FILE = "nodes.json"
MOST_LOSSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A node that was lost, by its name, in which trial, and why."""

    node: str
    number: int
    why: str


class NodeLedger:
    """nodes.json of a run folder: kept over --resume, since node ids change but names stay."""

    def __init__(self, folder: Path) -> None:
        """Read the losses of earlier sessions; a file that cannot be read counts as none."""
        self._file = folder / NODES_FILE
        self._lock = threading.Lock()
        self.losses: list[Loss] = []
        if self._file.exists():
            try:
                self.losses = msgspec.json.decode(read_bytes(self._file, "node losses"), type=list[Loss])
            except (InputError, msgspec.DecodeError, ValueError):
                self.losses = []

    def add(self, loss: Loss) -> None:
        """Write down a loss. Raises SgtuneError where the disk refuses."""
        with self._lock:
            self.losses.append(loss)
            write_own(self._file, encode_json(self.losses) + "\n")

    @property
    def left_out(self) -> set[str]:
        """The names of nodes that were lost too often."""
        counted = Counter(loss.node for loss in self.losses)
        return {name for name, count in counted.items() if count >= MOST_LOSSES}

    def lost_in(self, number: int) -> frozenset[str]:
        """The names of nodes that were lost in a trial: a cluster may count them as living for a while."""
        return frozenset(loss.node for loss in self.losses if loss.number == number)
