"""`sgtune runs repair`: keep the sound records of a spoiled trials.jsonl, and list the others.

A record is sound where its hash fits the chain, or where the record in its trial's own folder says the same. A spoiled
record in that folder counts if its neighbours confirm it. The old file is kept beside the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from hwprobe.errors import InputError
from hwprobe.files import encode_json, raise_unwritable, write_own
from hwprobe.holds import Held, Hold
from tuner.evidence.chain import Link, after, head_file, read_head, start_of
from tuner.evidence.flight import FLIGHT_FILE
from tuner.evidence.trial import TrialRecord
from tuner.evidence.trial_lines import UNREADABLE, cut_torn_line, decode_trial, write_trials


@dataclass(slots=True)
class Repair:
    """The records kept, by their old number, and those left out; `aside` is the old file (None: it was sound)."""

    kept: dict[int, TrialRecord] = field(default_factory=dict)
    recovered: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    aside: Path | None = None


def repair(run: Path) -> Repair:
    """Repair a run's evidence. Raises InputError if it is missing or in use, SgtuneError if the disk fails."""
    file = run / "trials.jsonl"
    if not file.is_file():
        raise InputError(f"there is no trials.jsonl in '{run}' to repair")
    try:
        hold = Hold(run / ".lock", f"process {os.getpid()} on {socket.gethostname()}")
    except Held as holder:
        raise InputError(f"run folder '{run}' is in use by {holder.said or 'another process'}; wait for it") from None
    except OSError as error:
        raise_unwritable(run / ".lock", error)
    try:
        torn = cut_torn_line(file)
        outcome = _Lines(run, file).sorted_out()
        if torn:
            outcome.left_out.append("the incomplete last line")
        if outcome.left_out or outcome.recovered or not _unbroken(run, file):
            _write(run, file, outcome)
        return outcome
    finally:
        hold.release()


class _Lines:
    """The lines of a spoiled file by trial, and the chain's stated hash after each trial."""

    def __init__(self, run: Path, file: Path) -> None:
        self._run = run
        self._by_number: defaultdict[int, list[tuple[Link, TrialRecord]]] = defaultdict(list)
        self._chains: defaultdict[int, set[str]] = defaultdict(set)
        self._chains[-1].add(start_of(run))
        self._head = read_head(file)
        self._unreadable = 0
        lines = file.read_bytes().split(b"\n")[:-1]
        links = [Link.of(line) for line in lines]
        self._unmarked = not any(link.stated for link in links) and not head_file(file).exists()
        for place, link in enumerate(links):
            try:
                record = decode_trial(link.body)
            except UNREADABLE:
                self._unreadable += 1
                self._chains[place].add(link.stated)
                continue
            self._by_number[record.number].append((link, record))
            self._chains[record.number].add(link.stated)
        self._most = len(lines) + (self._head.records if self._head else 0)
        # Launches that flew side by side are in the order in which they ended, all others in that of their numbers.
        self._in_order = not (run / FLIGHT_FILE).exists()

    def sorted_out(self) -> Repair:
        """Return the sound records, in the order of the trials."""
        outcome = Repair()
        order = self._order()
        for place, number in enumerate(order):
            before = order[place - 1] if place else -1
            following = order[place + 1] if place + 1 < len(order) else number + 1
            record = self._of(number, outcome, before=before, following=following)
            if record is None:
                outcome.left_out.append(f"trial {number}: nothing vouches for what is left of it")
            else:
                outcome.kept[number] = record
        spare = sum(len(lines) - 1 for lines in self._by_number.values() if lines)
        if spare:
            outcome.left_out.append(f"{spare} line(s) that repeat a trial or were changed")
        if self._unreadable:
            outcome.left_out.append(f"{self._unreadable} line(s) that are not records any more")
        return outcome

    def _order(self) -> list[int]:
        """Return the numbers of the trials there were, in the order in which they were written."""
        numbers = [number for number in self._by_number if 0 <= number < 2 * self._most]
        if not self._in_order:
            return numbers
        plausible = [number for number in numbers if number < self._most]
        return list(range(max([*plausible, (self._head.records if self._head else 0) - 1], default=-1) + 1))

    def _of(self, number: int, outcome: Repair, *, before: int, following: int) -> TrialRecord | None:
        """Return a trial's record if the chain or its folder confirms it."""
        lines = self._by_number[number]
        if self._unmarked:  # written before lines were marked: they cannot be checked
            return lines[0][1] if lines else None
        for link, record in lines:
            if any(link.follows(chain) for chain in self._chains[before]):
                self._chains[number] = {link.stated}
                return record
        own = self._own(number)
        for body, record in [(link.body, record) for link, record in lines] + ([own] if own else []):
            for stood in self._chains[before]:
                chain = after(stood, body)
                if self._vouched(number, chain, following):
                    self._chains[number] = {chain}
                    outcome.recovered.append(number)
                    return record
        same = next((link for link, record in lines if own is not None and record == own[1]), None)
        if same is None or own is None:
            return None
        self._chains[number].add(same.stated)
        return own[1]

    def _vouched(self, number: int, chain: str, following: int) -> bool:
        """Whether a spoiled line, the next trial or the head says that the chain stood there after this trial."""
        return (
            chain in self._chains[number]
            or any(link.follows(chain) for link, _ in self._by_number.get(following, ()))
            or (self._head is not None and self._head.chain == chain)
        )

    def _own(self, number: int) -> tuple[bytes, TrialRecord] | None:
        """Return what the trial's own folder holds of its record."""
        try:
            record = decode_trial((self._run / "trials" / str(number) / "result.json").read_bytes())
        except (*UNREADABLE, OSError):
            return None
        return (msgspec.json.encode(record), record) if record.number == number else None


def _unbroken(run: Path, file: Path) -> bool:
    chain, lines = start_of(run), file.read_bytes().split(b"\n")[:-1]
    for link in map(Link.of, lines):
        if not link.follows(chain):
            return False
        chain = link.stated
    head = read_head(file)
    return head is None or head.records <= len(lines)


def _write(run: Path, file: Path, outcome: Repair) -> None:
    """Put the spoiled file aside and write the sound records, numbered without gaps. Raises SgtuneError."""
    records = _numbered(outcome, gaps=(run / FLIGHT_FILE).exists())
    outcome.aside = next(
        name for n in range(1, 10_000) if not (name := file.with_name(f"{file.name}.spoiled-{n}")).exists()
    )
    try:
        shutil.copyfile(file, outcome.aside)
        _move_folders(run, outcome, records)
        write_trials(file, records)
        (run / "study.db").unlink(missing_ok=True)
    except OSError as error:
        raise_unwritable(file, error)


def _numbered(outcome: Repair, *, gaps: bool) -> Sequence[TrialRecord]:
    """Return the kept records, numbered anew; a second launch of a trial that is lost goes with it.

    Launches that flew side by side keep their numbers: others may still be in the air.
    """
    for number, record in list(outcome.kept.items()):
        if record.repeats is not None and record.repeats not in outcome.kept:
            del outcome.kept[number]
            outcome.left_out.append(f"trial {number}: the trial it launched again is lost")
    new = {old: old if gaps else place for place, old in enumerate(outcome.kept)}
    return [
        replace(record, number=new[old], repeats=None if record.repeats is None else new[record.repeats])
        for old, record in outcome.kept.items()
    ]


def _move_folders(run: Path, outcome: Repair, records: Sequence[TrialRecord]) -> None:
    """Let every trial's folder have its record's number; those of lost trials are put aside."""
    trials = run / "trials"
    places = {old: record.number for old, record in zip(outcome.kept, records, strict=True)}
    if not trials.is_dir() or all(old == new for old, new in places.items()):
        return
    for folder in sorted((f for f in trials.iterdir() if f.name.isdecimal()), key=lambda f: int(f.name)):
        old = int(folder.name)
        name = str(places[old]) if old in places else f"left-out-{old}"
        if name != folder.name:
            with contextlib.suppress(FileExistsError):
                folder.rename(trials / name)
            if old in places:
                record = replace(outcome.kept[old], number=places[old])
                write_own(trials / name / "result.json", encode_json(record) + "\n")
