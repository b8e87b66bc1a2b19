"""Run folders as the pages see them: only read, and readable at any moment of a run's life or death."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import psutil

from hwprobe.errors import InputError
from hwprobe.plain_text import clean
from hwprobe.profile import HardwareProfile, read_profile
from models.architecture import deepseek_r1
from models.costs.memory import MemoryLedger, ledger_of
from models.layout import table_of
from models.serving.estimate import Context
from models.version import parse_version
from models.workload import Slo
from planner.plans.make import PlanQuestion
from tuner.evidence.knob_effects import KnobEffect, knob_effects
from tuner.evidence.live_state import LiveState, RunState, read_live
from tuner.evidence.load_history import LoadSample, read_samples
from tuner.evidence.run_folder import holder_of, read_manifest
from tuner.evidence.standings import BASELINE, Standing, named, standings, winner_of
from tuner.evidence.trial import Manifest, TrialRecord, best_of
from tuner.evidence.trial_lines import ends_torn, sound_trials

RUNS_VARIABLE = "SGTUNE_RUNS"
# The end of a log that is read; long enough for forty wide lines.
TAIL_BYTES = 16_384
MOST_NOTES = 20

Stamp = tuple[int, int]


class Status(StrEnum):
    """Where a run stands. `interrupted` can continue with --resume, as can `failed`."""

    EMPTY = "not started"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run folder at one moment; `notes` say what in it could not be read."""

    name: str
    path: Path
    manifest: Manifest
    hardware: HardwareProfile | None
    records: tuple[TrialRecord, ...]
    status: Status
    live: LiveState | None
    stamp: Stamp
    notes: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.status is Status.RUNNING

    @property
    def launched(self) -> tuple[TrialRecord, ...]:
        """Trials that started a server, the second launches of the end included."""
        return tuple(record for record in self.records if record.launched)

    @property
    def measured(self) -> tuple[TrialRecord, ...]:
        """Trials with a figure at the asked concurrency."""
        return tuple(record for record in self.records if record.target is not None)

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records)

    @property
    def baseline(self) -> TrialRecord | None:
        standing = named(self.records, BASELINE)
        return None if standing is None else standing.first

    @property
    def winner(self) -> Standing | None:
        return winner_of(self.records)

    @property
    def standings(self) -> list[Standing]:
        return standings(self.records)

    @property
    def slos(self) -> tuple[Slo, ...]:
        return tuple(Slo.parse(text) for text in self.manifest.slo)

    @property
    def effects(self) -> list[KnobEffect]:
        """What single knobs did, largest first."""
        return _effects(self.path, self.stamp)

    @property
    def context(self) -> Context:
        """What predictions of the run rest on, with the shipped engine profile.

        Raises InputError without hardware.json, or for another model than DeepSeek-R1.
        """
        if self.hardware is None:
            raise InputError(f"run '{self.name}' has no readable hardware.json")
        arch, manifest = deepseek_r1(), self.manifest
        if arch.name != manifest.model:
            raise InputError(f"run '{self.name}' is of {manifest.model}, whose config.json is not in the folder")
        version = parse_version(manifest.sglang_version)
        return PlanQuestion(
            hardware=self.hardware, arch=arch, version=version, isl=manifest.isl, osl=manifest.osl
        ).context()

    def trial(self, number: int) -> TrialRecord | None:
        return next((record for record in self.records if record.number == number), None)

    def ledger(self, record: TrialRecord) -> MemoryLedger:
        """Return where one GPU's memory goes in a trial's configuration. Raises InputError as `context` does."""
        table = table_of([record.config])
        return ledger_of(self.context.memory(table), table, 0)


def runs_folder() -> Path:
    """Return the folder that holds the runs, as the command line passed it."""
    return Path(os.environ.get(RUNS_VARIABLE, "runs"))


def run_names(root: Path) -> list[str]:
    """Return the runs of a folder, the one that changed last first; none where there is no such folder."""
    try:
        entries = [entry for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        return []
    changed_runs = [(max(_changed(Path(entry.path))), entry.name) for entry in entries if _is_run(Path(entry.path))]
    return [name for _, name in sorted(changed_runs, reverse=True)]


def read_run(root: Path, name: str) -> RunView:
    """Read a run. Raises InputError, in a sentence for a reader, if it is gone or holds no run."""
    path = root / name
    if not _is_run(path):
        raise InputError(f"run '{name}' is no longer in '{root}'")
    manifest = read_manifest(path)
    stamp = _stamp(path / "trials.jsonl")
    records, notes = _records(path / "trials.jsonl", stamp)
    hardware, missing = _hardware(path / "hardware.json", _stamp(path / "hardware.json"))
    live = read_live(path)
    return RunView(
        name=name,
        path=path,
        manifest=manifest,
        hardware=hardware,
        records=records,
        status=_status(path, live, started=bool(records)),
        live=live,
        stamp=stamp,
        notes=(*notes, *missing),
    )


def log_tail(run: RunView, number: int, lines: int = 24) -> str:
    """Return the last lines of a trial's server.log, '' where there is none. Of a progress bar the last state."""
    file = run.path / "trials" / str(number) / "server.log"
    try:
        if not (file.is_file() and file.resolve().is_relative_to(run.path.resolve())):
            return ""  # a run that was received may link elsewhere
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    whole = text.removesuffix("\n").split("\n")[0 if size <= TAIL_BYTES else 1 :]
    return clean("\n".join(line.rstrip("\r").rsplit("\r", maxsplit=1)[-1] for line in whole[-lines:]))


def load_samples(run: RunView, number: int) -> list[LoadSample]:
    """Return what a trial's server said of its load while it was measured; none of a simulated one."""
    folder = run.path / "trials" / str(number)
    return read_samples(folder) if folder.resolve().is_relative_to(run.path.resolve()) else []


def _is_run(path: Path) -> bool:
    return (path / "run.toml").is_file()


def _changed(path: Path) -> Stamp:
    return max(_stamp(path / "trials.jsonl"), _stamp(path / "run.toml"), _stamp(path / "live.json"))


def _stamp(file: Path) -> Stamp:
    """Return what changes with a file's content; zeros where there is none."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _records(file: Path, stamp: Stamp) -> tuple[tuple[TrialRecord, ...], tuple[str, ...]]:
    """Return the whole lines that are sound records, and a note on the others. A torn last line is being written."""
    records, notes = sound_trials(file)
    if ends_torn(file):
        notes.append(f"the last line of {file.name} is incomplete and left out: --resume would run that trial again")
    return tuple(records), tuple(notes[:MOST_NOTES])


@lru_cache(maxsize=32)
def _hardware(file: Path, stamp: Stamp) -> tuple[HardwareProfile | None, tuple[str, ...]]:
    try:
        return read_profile(file), ()
    except InputError as error:
        return None, (str(error),)


@lru_cache(maxsize=8)
def _effects(path: Path, stamp: Stamp) -> list[KnobEffect]:
    return knob_effects(_records(path / "trials.jsonl", stamp)[0])


def _status(path: Path, live: LiveState | None, *, started: bool) -> Status:
    if live is not None:
        if live.running:
            return Status.RUNNING
        if live.state in (RunState.FINISHED, RunState.FAILED):
            return Status.FINISHED if live.state is RunState.FINISHED else Status.FAILED
        return Status.INTERRUPTED
    if (path / "result.json").is_file():
        return Status.FINISHED
    if _held(path):
        return Status.RUNNING
    return Status.INTERRUPTED if started else Status.EMPTY


def _held(path: Path) -> bool:
    """Whether the process that holds the folder is there (of a run that keeps no live.json)."""
    words = holder_of(path).split()
    return len(words) == 4 and words[1].isdecimal() and psutil.pid_exists(int(words[1]))
