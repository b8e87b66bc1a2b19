"""The run folder: run.toml, hardware.json, trials.jsonl (the evidence), and a folder per trial.

A record is on disk, fsynced, before anything else learns of it; a torn last line is cut off on opening.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import tomli_w
from filelock import FileLock, Timeout

from hwprobe.errors import InputError, SgtuneError, did_you_mean
from hwprobe.files import decode_json, encode_json, read_bytes, write_atomic
from hwprobe.profile import HardwareProfile
from tuner.evidence.trial import Manifest, TrialRecord


class RunFolder:
    """One run on disk, held by one tuner at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")

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
        """Make the folder and take its lock. Raises InputError if it holds a run or cannot be written."""
        if (path / "run.toml").exists():
            _check_question(path, manifest)
            raise InputError(f"run folder '{path}' exists: continue it with --resume, or name another with --run")
        write_atomic(path / "hardware.json", encode_json(hardware) + "\n")
        asked = {name: value for name, value in msgspec.to_builtins(manifest).items() if value is not None}
        write_atomic(path / "run.toml", tomli_w.dumps(asked))
        folder = cls(path)
        folder._acquire()
        return folder

    @classmethod
    def resume(cls, path: Path, manifest: Manifest) -> tuple[RunFolder, list[TrialRecord], bool]:
        """Open a run to continue it: the folder, its trials, and whether a torn line was cut off.

        Raises InputError if there is no run, or if it answers another question (with the difference).
        """
        if not (path / "run.toml").exists():
            raise InputError(f"there is no run in '{path}' to resume; leave --resume out to start it")
        _check_question(path, manifest)
        folder = cls(path)
        folder._acquire()
        torn = cut_torn_line(folder.trials_file)
        return folder, read_trials(folder.trials_file), torn

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = _holder(self.path)
            raise InputError(
                f"run folder '{self.path}' is in use{holder}; wait for it or name another with --run"
            ) from None
        except OSError as error:
            raise InputError(f"cannot lock run folder '{self.path}': {error.strerror or error}") from error
        write_atomic(self.path / ".holder", f"{os.getpid()}\n")

    def release(self) -> None:
        """Let go of the folder; the records stay."""
        (self.path / ".holder").unlink(missing_ok=True)
        self._lock.release()

    def append(self, record: TrialRecord) -> None:
        """Add a record to the evidence: written and fsynced before this returns."""
        line = encode_json(record, indent=0) + "\n"
        try:
            with self.trials_file.open("a", encoding="utf-8") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            cut_torn_line(self.trials_file)
            raise SgtuneError(
                f"cannot record trial {record.number} in '{self.trials_file}': {error.strerror or error}; "
                "make room and go on with --resume"
            ) from error

    def write_trial(self, number: int, name: str, text: str, *, executable: bool = False) -> None:
        """Write a file into the trial's own folder."""
        write_atomic(self.path / "trials" / str(number) / name, text, executable=executable)

    def write(self, name: str, text: str) -> None:
        """Write a file into the run folder."""
        write_atomic(self.path / name, text)


def _check_question(path: Path, manifest: Manifest) -> None:
    """Raise InputError with the differences if the folder's run answers another question."""
    differences = read_manifest(path).differences(manifest)
    if differences:
        raise InputError(
            f"run folder '{path}' belongs to another question: {'; '.join(differences)}; "
            "ask the same question to resume it, or name another folder with --run"
        )


def read_manifest(path: Path) -> Manifest:
    """Read run.toml. Raises InputError naming what is wrong in it, or the runs there are where this is none."""
    file = path / "run.toml"
    if not file.exists():
        runs = [other.parent.name for other in path.parent.glob("*/run.toml")]
        there = did_you_mean(path.name, runs) if runs else "there is none; --runs DIR names another folder"
        raise InputError(f"no run '{path.name}' in '{path.parent}': {there}")
    try:
        return msgspec.toml.decode(read_bytes(file, "run manifest"), type=Manifest)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InputError(f"{file}: not a run manifest ({error})") from error


def read_trials(file: Path) -> list[TrialRecord]:
    """Read the complete lines of a trials.jsonl. Raises InputError naming a line that is not a record."""
    if not file.exists():
        return []
    lines = read_bytes(file, "trial records").split(b"\n")[:-1]
    return [decode_json(line, TrialRecord, f"{file}, line {n}") for n, line in enumerate(lines, start=1)]


def cut_torn_line(file: Path) -> bool:
    """Cut off what follows the last newline (a write the power cut short); return whether there was any."""
    if not file.exists():
        return False
    data = read_bytes(file, "trial records")
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return False
    with file.open("r+b") as stream:
        stream.truncate(whole)
        os.fsync(stream.fileno())
    return True


def _holder(path: Path) -> str:
    try:
        return f" by process {(path / '.holder').read_text(encoding='utf-8').strip()}"
    except OSError:
        return ""
