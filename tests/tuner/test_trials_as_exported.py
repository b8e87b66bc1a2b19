"""A trial is one configuration: what was launched, every file exported of it, and what `check` reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.version import Version

from planner.launch import launch_spec
from planner.launch_files.targets import Target
from planner.launch_lines.read import launch_of_file
from tests.conftest import run_sgtune
from tests.launched_flags import flags_of
from tuner.evidence.trial_lines import read_trials


@pytest.mark.parametrize("release", ["0.4.6", "0.5.3", "0.5.23"])
def test_every_trial_is_exported_as_it_was_launched(release: str, tmp_path: Path) -> None:
    version = Version(release)
    ran = run_sgtune(
        "tune", "--hardware", "h200x8", "--isl", "300", "--osl", "100", "--concurrency", "32", "--engine", "simulated",
        "--trials", "5", "--sglang-version", release, "--runs", str(tmp_path), "--run", "r", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    trials = [trial for trial in read_trials(tmp_path / "r" / "trials.jsonl") if trial.config is not None]
    assert len(trials) >= 5
    compared = 0
    for trial in trials:
        assert trial.config is not None
        out = tmp_path / str(trial.number)
        written = run_sgtune(
            "export", "--run", "r", "--runs", str(tmp_path), "--trial", str(trial.number), "--out", str(out), "--json"
        )
        if written.code == 2:
            assert "trial" in written.err, "no configuration of its own to start"
            continue
        planned = flags_of(launch_spec(trial.config, version).argv()[3:], version)
        for target in Target:
            if (out / target.file_name).exists():
                read = flags_of(list(launch_of_file(out / target.file_name).words), version)
                assert read == planned, (trial.number, target)
                compared += 1
    assert compared >= 20, "of at least four trials in five kinds of file"
    assert json.loads(ran.out)["best"] is not None
