"""Chaos: thirty trials under a seeded schedule of faults, the tuner killed again and again; nothing lost or left."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.children import start_sgtune
from tests.faults.test_launch import GRAPHS
from tests.faults.test_tune_faults import question, records
from tests.left import nothing_left, still_listening
from tuner.engines.faults import Fault, FaultKind

TRIALS = 30
KILLS = 10
DOOMED = 2  # the first seed of the plan: every request of it fails, at every try
KV_POOL = "ValueError: Loaded weights leave no GPU memory for the KV cache. Raise --mem-fraction-static above 0.9"
DEEDS: tuple[Callable[[int], Fault], ...] = (
    lambda n: Fault(kind=FaultKind.EXIT, phase="kv pool", text=KV_POOL, code=-9, launches=(n,)),
    lambda n: Fault(kind=FaultKind.EXIT, phase="graphs", text=GRAPHS, code=-9, launches=(n,)),
    lambda n: Fault(kind=FaultKind.EXIT, phase="weights", code=-11, launches=(n,)),
    lambda n: Fault(kind=FaultKind.KILL_SCHEDULER, requests=5, launches=(n,)),
    lambda n: Fault(kind=FaultKind.OOM, count=2, launches=(n,)),
    lambda n: Fault(kind=FaultKind.ERRORS, count=3, launches=(n,)),
    lambda n: Fault(kind=FaultKind.SHORT, count=2, launches=(n,)),
    lambda n: Fault(kind=FaultKind.FLOOD, phase="weights", count=60, launches=(n,)),
    lambda n: Fault(kind=FaultKind.ESCAPE, phase="weights", launches=(n,)),
    lambda n: Fault(kind=FaultKind.HOLD_STDOUT, phase="weights", launches=(n,)),
    lambda n: Fault(kind=FaultKind.PORT_TAKEN, phase="warm-up", launches=(n,)),
)


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_trials_of_chaos_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    dice = random.Random(30)
    struck = dice.sample(range(1, TRIALS), 2 * len(DEEDS))
    faults = [deed(number) for deed, number in zip((*DEEDS, *DEEDS), struck, strict=True)]
    faults.append(Fault(kind=FaultKind.ERRORS, requests=1, count=1, launches=(DOOMED,)))
    arguments = question(tmp_path, *faults, boot_s=0.3, trials=TRIALS)
    arguments.remove("--no-mtp")
    arguments += ["--sampler", "random", "--json"]
    known: list[dict[str, Any]] = []
    kills = 0
    while True:
        begun = (tmp_path / "runs" / "a" / "run.toml").exists()
        process = start_sgtune(*arguments, *(["--resume"] if begun else []))
        try:
            out, said = process.communicate(timeout=dice.uniform(2.0, 12.0) if kills < KILLS else 600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        assert nothing_left(), "a process of ours outlived its tuner"
        assert not still_listening(tmp_path / "runs" / "a")
        now = records(tmp_path)
        assert now[: len(known)] == known, "a record changed or was lost"
        known = now
        if process.returncode != -9:
            break
    assert process.returncode == 0, said
    _consistent(known, json.loads(out), [DOOMED, *struck])


def _consistent(known: list[dict[str, Any]], document: dict[str, Any], struck: list[int]) -> None:
    """What must hold of the evidence, whatever happened on the way."""
    assert [record["number"] for record in known] == list(range(len(known)))
    launched = [record for record in known if record["outcome"] != "ruled_out"]
    assert len(launched) == document["launches"] == TRIALS
    for record in launched:
        assert record["outcome"] == "measured" or record["reason"], "a failure says why"
        assert record["number"] in struck or record["outcome"] == "measured", record
    outcomes = {record["outcome"] for record in launched}
    assert outcomes == {"measured", "infeasible", "failed"}
    assert known[DOOMED]["outcome"] == "failed", "a launch that goes wrong both times is a failed one"
    measured = [record for record in launched if record["outcome"] == "measured"]
    best = max(measured, key=lambda record: record["objective"])
    assert document["best"]["number"] == best["number"]
