"""The folder of results: one file an item, written at once; an item with a file is not measured again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json, read_bytes, write_atomic
from hwprobe.inventory.health import refusal
from hwprobe.inventory.nvml import Inventory
from hwprobe.kernels.report import Report
from hwprobe.profile import WorkingState


class ItemEnd(StrEnum):
    """How an item ended. `cut` ran out of the part's time and is run again; the others stand."""

    DONE = "done"
    FAILED = "failed"
    LATE = "late"
    SKIPPED = "skipped"
    CUT = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """How one item ended; `report` holds its measurements, also those before a failure. `said` names its log file."""

    name: str
    title: str
    ended: ItemEnd
    gpus: tuple[int, ...] = ()
    reason: str = ""
    report: Report | None = None
    working: dict[str, WorkingState] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    said: str = ""

    @property
    def stands(self) -> bool:
        return self.ended is not ItemEnd.CUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the folder is of: when it was begun, and the machine as NVML saw it then.

    `refused` says of this run, by place, which GPUs must not be measured now.
    """

    when: str
    inventory: Inventory
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of results at `path`."""

    path: Path

    def begin(self, inventory: Inventory) -> Begun:
        """Return what the folder is of, and write it when new. Raises InputError for another machine's folder."""
        file = self.path / "started.json"
        refused = {place: why for place, gpu in enumerate(inventory.gpus) if (why := refusal(gpu))}
        if not file.exists():
            started = Begun(when=datetime.now(UTC).isoformat(timespec="seconds"), inventory=inventory)
            write_atomic(file, encode_json(started) + "\n")
            return replace(started, refused=refused)
        started = decode_json(read_bytes(file, "start of the half hour"), Begun, str(file))
        before, now = ([gpu.uuid for gpu in each.gpus] for each in (started.inventory, inventory))
        if before != now:
            raise InputError(f"{self.path} is of a machine with other GPUs ({before}, here {now}); name another --out")
        return replace(started, refused=refused)

    def read(self, name: str) -> ItemRecord | None:
        """Return an item's record, or None for one that is not there."""
        file = self.path / f"{name}.json"
        if not file.exists():
            return None
        return decode_json(read_bytes(file, "result"), ItemRecord, str(file))

    def write(self, record: ItemRecord) -> None:
        """Keep an item's record, whole or not at all."""
        write_atomic(self.path / f"{record.name}.json", encode_json(record) + "\n")

    def say(self, name: str, text: str) -> str:
        """Keep what a child or a program said, and return the file's name; '' for nothing."""
        if not text.strip():
            return ""
        write_atomic(self.path / f"{name}.stderr.txt", text)
        return f"{name}.stderr.txt"
