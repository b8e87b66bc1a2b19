"""The fuzzer for a minute, and a run of thousands of records."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuner.test_store import HARDWARE, MANIFEST, record
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.trial import TrialOutcome
from tuner.evidence.trial_lines import read_trials, write_trials

ROOT = Path(__file__).parents[2]
RECORDS = 4000


@pytest.mark.slow
def test_a_minute_of_mutated_files_ends_well_for_every_command() -> None:
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--seconds", "60", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " 0 bad" in done.stdout


def test_four_thousand_records_are_read_in_seconds(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", MANIFEST, HARDWARE).release()
    blank = replace(record(0), outcome=TrialOutcome.RULED_OUT, points=(), failure=None)
    file = tmp_path / "run" / "trials.jsonl"
    write_trials(file, (replace(blank if n % 8 else record(1), number=n) for n in range(RECORDS)))
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.process_time()
    assert len(read_trials(file)) == RECORDS
    assert time.process_time() - began < 5.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    assert grown / 1024 < 200.0
