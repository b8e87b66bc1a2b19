"""trials.jsonl as records: read line by line, each checked against the chain and its number before it is believed."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hwprobe.bounds import SERVER, check_fields
from hwprobe.errors import InputError
from hwprobe.files import raise_unwritable, write_own
from hwprobe.parsing import said
from tuner.evidence.chain import (
    WAY_OUT,
    Head,
    Link,
    head_file,
    read_head,
    sealed,
    start_of,
    whole_lines,
    write_head,
)
from tuner.evidence.trial import TrialOutcome, TrialRecord

T = TypeVar("T")

_TRIAL = msgspec.json.Decoder(TrialRecord)
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)


def decode_trial(body: bytes) -> TrialRecord:
    """Return a record as it was written.

    Raises one of UNREADABLE, too, for a measured trial without a measurement and for settings no server has.
    """
    record = _TRIAL.decode(body)
    try:
        check_fields(record.config, SERVER, "config")
    except InputError as error:
        raise ValueError(str(error)) from error
    if record.outcome is TrialOutcome.MEASURED and not record.points:
        raise ValueError("measured, without a measurement")
    return record


class EvidenceSpoiled(InputError):
    """The evidence was changed after it was written; names the line and the fix."""

    def __init__(self, file: Path, problem: str, way_out: str = WAY_OUT) -> None:
        super().__init__(f"{file}{problem}; {way_out.format(run=file.parent.name)}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The records of a run, and where their chain stands after the last."""

    records: list[TrialRecord]
    chain: str


def read_trials(file: Path) -> list[TrialRecord]:
    """Read the complete lines of a trials.jsonl. Raises InputError naming a changed line."""
    return read_evidence(file).records


class Shared:
    """Lets records of one file share equal parts: thousands of proposals repeat the same words."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, Any] = {}

    def record(self, record: TrialRecord) -> TrialRecord:
        """Return an equal record that shares its parts with those seen before."""
        return replace(
            record,
            source=self._one(record.source),
            params={
                name: self._one(value) if isinstance(value, str) else value for name, value in record.params.items()
            },
            config=self._one(record.config),
            constraints=self._same(record.constraints),
            predicted=self._same(record.predicted),
            reason=self._one(record.reason),
        )

    def _one(self, value: T) -> T:
        shared: T = self._seen.setdefault((type(value), value), value)
        return shared

    def _same(self, values: dict[str, float]) -> dict[str, float]:
        shared: dict[str, float] = self._seen.setdefault(tuple(values.items()), values)
        return shared


def read_evidence(file: Path) -> Evidence:
    """Read and check a trials.jsonl; a missing file is empty evidence. Raises EvidenceSpoiled naming the line."""
    records: list[TrialRecord] = []
    chain, head, shared = start_of(file.parent), read_head(file), Shared()
    try:
        lines = whole_lines(file) if file.exists() else iter(())
        for place, line in enumerate(lines):
            link = Link.of(line)
            record = _decoded(file, place, link)
            if not link.follows(chain):
                raise EvidenceSpoiled(file, f", line {place + 1}: {_broken(link, record, place)}")
            records.append(shared.record(record))
            chain = link.stated
    except OSError as error:
        raise InputError(f"cannot read trial records '{file}': {error.strerror or error}") from error
    if head is not None and head.records > len(records):
        raise EvidenceSpoiled(file, f" ends after {len(records)} records, {head.records} were written")
    return Evidence(records, chain)


def sound_trials(file: Path) -> tuple[list[TrialRecord], list[str]]:
    """Return the sound records of a trials.jsonl that may be written meanwhile, and a note on each other line.

    For those who look on: the line after one that is spoiled beyond its mark is shown, though nothing vouches for it.
    """
    records: list[TrialRecord] = []
    notes: list[str] = []
    shared = Shared()
    try:
        chain = start_of(file.parent)
        for place, line in enumerate(whole_lines(file)):
            link = Link.of(line)
            note, record = f"{file.name}, line {place + 1} is left out: ", None
            try:
                record = decode_trial(link.body)
                note += _broken(link, record, place)
            except UNREADABLE as error:
                note += f"not a record ({said(error)})"
            if record is not None and (not chain or link.follows(chain)):
                records.append(shared.record(record))
            else:
                notes.append(note)
            chain = link.stated
    except (OSError, InputError):
        return records, notes
    return records, notes


def ends_torn(file: Path) -> bool:
    """Whether a file's last line is incomplete: it is being written, or was when a tuner died."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            return size > 0 and os.pread(stream.fileno(), 1, size - 1) != b"\n"
    except OSError:
        return False


def write_trials(file: Path, records: Iterable[TrialRecord]) -> None:
    """Write records as the whole evidence of the run in whose folder `file` lies. Raises SgtuneError by the disk."""
    lines, chain = [], start_of(file.parent)
    for record in records:
        line, chain = sealed(msgspec.json.encode(record), chain)
        lines.append(line.decode() + "\n")
    head_file(file).unlink(missing_ok=True)
    write_own(file, "".join(lines))
    write_head(file, Head(records=len(lines), chain=chain))


def _decoded(file: Path, place: int, link: Link) -> TrialRecord:
    try:
        return decode_trial(link.body)
    except UNREADABLE as error:
        raise EvidenceSpoiled(file, f", line {place + 1}: not a record ({said(error)})") from error


def _broken(link: Link, record: TrialRecord, place: int) -> str:
    if record.number != place:
        return f"trial {record.number} stands where trial {place} should: a line was doubled, moved or taken out"
    if not link.stated:
        return "it lacks the mark that every line is written with"
    return "it was changed after it was written" + ("" if place else ", or run.toml or hardware.json was")


def cut_torn_line(file: Path) -> bool:
    """Cut off what follows the last newline (a write the power cut short); return whether there was any.

    Raises SgtuneError or InputError where the file cannot be changed.
    """
    try:
        with file.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            whole = _after_last_newline(stream.fileno(), size)
            if whole == size:
                return False
            stream.truncate(whole)
            os.fsync(stream.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise_unwritable(file, error)
    return True


def _after_last_newline(handle: int, size: int, step: int = 1 << 16) -> int:
    end = size
    while end > 0:
        start = max(0, end - step)
        newline_at = os.pread(handle, end - start, start).rfind(b"\n")
        if newline_at >= 0:
            return start + newline_at + 1
        end = start
    return 0
