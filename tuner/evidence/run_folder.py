"""The run folder: run.toml, hardware.json, trials.jsonl (the evidence), and a folder per trial.

The lock comes before anything is read or written. A record is on disk, fsynced and chained to the one before it,
before anything else learns of it; a torn last line is cut off on opening.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace
from pathlib import Path

import msgspec
import tomli_w

from hwprobe.errors import InputError, SgtuneError, did_you_mean
from hwprobe.files import PART, Content, append_line, encode_json, plain_problem, read_bytes, write_atomic, write_own
from hwprobe.holds import Held, Hold
from hwprobe.parsing import load_toml
from hwprobe.profile import HardwareProfile
from tuner.choices import SIMULATED
from tuner.evidence.chain import Head, sealed, start_of, write_head
from tuner.evidence.trial import Manifest, TrialOutcome, TrialRecord
from tuner.evidence.trial_lines import cut_torn_line, read_evidence

LOCK = ".lock"
GO_ON = "nothing recorded is lost: make room and continue with --resume"


class FolderTaken(InputError):
    """The folder holds a run already, or another tuner holds the folder."""


class RunFolder:
    """One run on disk, held by one tuner at a time."""

    def __init__(self, path: Path, hold: Hold) -> None:
        self.path = path
        self._hold = hold
        self._chain, self._count = "", 0

    @property
    def trials_file(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def study_file(self) -> Path:
        return self.path / "study.db"

    @property
    def export_folder(self) -> Path:
        return self.path / "export"

    @classmethod
    def create(cls, path: Path, manifest: Manifest, hardware: HardwareProfile) -> RunFolder:
        """Make the folder, take its lock, then write. Raises InputError if it holds a run or cannot be written."""
        folder = cls(path, _held(path))
        try:
            if (path / "run.toml").exists():
                _check_question(path, manifest)
                raise FolderTaken(f"run folder '{path}' exists: continue it with --resume, or name another with --run")
            if folder.trials_file.exists():
                raise FolderTaken(f"'{path}' holds trials but no run.toml: name another folder with --run")
            write_atomic(path / "hardware.json", encode_json(hardware) + "\n")
            answers = {name: value for name, value in msgspec.to_builtins(manifest).items() if value is not None}
            stamp = f"# {SIMULATED}: played in a world, on no machine\n" if manifest.simulated else ""
            write_atomic(path / "run.toml", stamp + tomli_w.dumps(answers), private=True)
            folder._chain = start_of(path)
        except BaseException:  # interrupted or not: the lock goes, the error stays
            folder.release()
            raise
        return folder

    @classmethod
    def resume(cls, path: Path, manifest: Manifest) -> tuple[RunFolder, list[TrialRecord], bool]:
        """Open a run to continue it: the folder, its trials, and whether a torn line was cut off.

        Raises InputError if there is no run, if it answers another question (with the difference), or if the evidence
        was changed.
        """
        if not (path / "run.toml").exists():
            raise InputError(f"there is no run in '{path}' to resume; leave --resume out to start it")
        folder = cls(path, _held(path))
        try:
            _check_question(path, manifest)
            torn = cut_torn_line(folder.trials_file)
            evidence = read_evidence(folder.trials_file)
            folder._chain, folder._count = evidence.chain, len(evidence.records)
            _remove_parts(path)
        except BaseException:  # interrupted or not: the lock goes, the error stays
            folder.release()
            raise
        return folder, evidence.records, torn

    def release(self) -> None:
        """Let go of the folder; the records stay."""
        self._hold.release()

    def append(self, record: TrialRecord) -> TrialRecord:
        """Add a record to the evidence: written and fsynced before this returns. Return it as it was written.

        Raises SgtuneError where the disk or the folder is at fault: earlier records stay.
        """
        self.check_in_place()
        written, body = readable(record)
        line, chain = sealed(body, self._chain)
        try:
            append_line(self.trials_file, line.decode() + "\n")
            self._chain, self._count = chain, self._count + 1
            write_head(self.trials_file, Head(records=self._count, chain=chain))
        except SgtuneError as error:
            why = str(error).partition(";")[0]
            raise SgtuneError(f"trial {record.number} is not recorded: {why}; {GO_ON}") from error
        return written

    def check_in_place(self) -> None:
        """Raise SgtuneError when the folder was removed or replaced while we held it."""
        if not self._hold.in_place:
            raise SgtuneError(
                f"run folder '{self.path}' is gone, or another has taken its place: put it back, then continue with "
                "--resume"
            )

    def write_trial(self, number: int, name: str, text: str, *, executable: bool = False) -> None:
        """Write a file into the trial's own folder. Raises SgtuneError where that fails."""
        self.write(f"trials/{number}/{name}", text, executable=executable)

    def write(self, name: str, text: Content, *, executable: bool = False, durable: bool = True) -> None:
        """Write a file into the run folder. Raises SgtuneError where that fails."""
        self.check_in_place()
        try:
            write_own(self.path / name, text, executable=executable, durable=durable)
        except SgtuneError as error:
            raise SgtuneError(f"{str(error).partition(';')[0]}; {GO_ON}") from error

    def lacks(self, number: int, names: tuple[str, ...]) -> bool:
        """Whether a trial's own folder lacks one of these files."""
        return not all((self.path / "trials" / str(number) / name).is_file() for name in names)


def readable(record: TrialRecord) -> tuple[TrialRecord, bytes]:
    """Return a record with its JSON, such that it can be read again: figures that are not numbers are left out."""
    body = msgspec.json.encode(record)
    try:
        msgspec.json.decode(body, type=TrialRecord)
    except msgspec.ValidationError as error:
        plain = replace(
            record, outcome=TrialOutcome.FAILED, points=(), predicted={}, objective=0.0, value=None, decided_at=None,
            constraints=dict.fromkeys(record.constraints, 0.0), misses=(), boot_s=0.0, spent_s=0.0,
            reason=f"its figures are not numbers: {plain_problem(str(error))}",
        )  # fmt: skip
        return plain, msgspec.json.encode(plain)
    return record, body


def _held(path: Path) -> Hold:
    """Make the folder and take its lock. Raises InputError naming the holder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Hold(path / LOCK, f"process {os.getpid()} on {socket.gethostname()}")
    except Held as other:
        holder = f" by {other.said}" if other.said else ""
        raise FolderTaken(f"run folder '{path}' is in use{holder}; wait for it or name another with --run") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write run folder '{path}': {why}; name another with --run or --runs") from error


def holder_of(path: Path) -> str:
    """Return what the holder of a run folder wrote into its lock, '' where the folder is free."""
    try:
        return read_bytes(path / LOCK, "lock").decode(errors="replace").strip()
    except InputError:
        return ""


def _remove_parts(path: Path) -> None:
    """Remove half-written files of a tuner that was killed."""
    for part in (*path.glob(f".*{PART}"), *path.glob(f"trials/*/.*{PART}")):
        with contextlib.suppress(OSError):
            part.unlink()


def _check_question(path: Path, manifest: Manifest) -> None:
    """Raise InputError with the differences if the folder's run answers another question."""
    differences = read_manifest(path).differences(manifest)
    if differences:
        raise InputError(
            f"run folder '{path}' was created with different settings: {'; '.join(differences)}; "
            "ask the same question to resume it, or name another folder with --run"
        )


def read_manifest(path: Path) -> Manifest:
    """Read run.toml. Raises InputError naming its error, or the runs that exist."""
    file = path / "run.toml"
    if not file.exists():
        runs = [other.parent.name for other in path.parent.glob("*/run.toml")]
        hint = did_you_mean(path.name, runs) if runs else "there is none; --runs DIR names another folder"
        raise InputError(f"no run '{path.name}' in '{path.parent}': {hint}")
    try:
        return msgspec.convert(load_toml(read_bytes(file, "run manifest"), str(file)), Manifest)
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: not a run manifest ({error})") from error
