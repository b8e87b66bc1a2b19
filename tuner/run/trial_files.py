"""The files of one launch in the run folder, for people: its command, its record and its points."""

from __future__ import annotations

from msgspec import to_builtins
from packaging.version import Version

from hwprobe.files import encode_json
from planner.launch import launch_spec
from tuner.choices import SIMULATED
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.trial import TrialRecord

TRIAL_FILES = ("command.sh", "result.json", "points.jsonl")


def write_trial(folder: RunFolder, record: TrialRecord, version: Version, model_path: str) -> None:
    """Write TRIAL_FILES into the trial's own folder. Raises SgtuneError where that fails."""
    line = launch_spec(record.config, version, model_path=model_path).shell_line()
    head = f"# {SIMULATED}: tried in a world, not on a machine\n" if record.simulated else ""
    folder.write_trial(record.number, "command.sh", f"{head}{line}\n", executable=True)
    write_record(folder, record)


def write_record(folder: RunFolder, record: TrialRecord) -> None:
    """Write the record of a launch and its points into the trial's own folder."""
    folder.write_trial(record.number, "result.json", encode_json(record) + "\n")
    stamp = {"simulated": True} if record.simulated else {}
    points = "".join(encode_json({**to_builtins(p), **stamp}, indent=0) + "\n" for p in record.points)
    folder.write_trial(record.number, "points.jsonl", points)
