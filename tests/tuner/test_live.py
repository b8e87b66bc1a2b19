"""live.json: what a running tune says of itself, never part of the evidence, harmless when it is missing or torn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuner.engines.simulated import SimulatedEngine
from tuner.evidence.live_state import LIVE_FILE, LiveState, RunState, read_live
from tuner.seam import FailureKind, LaunchFailed

Sgtune = Callable[..., Any]
QUESTION = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
    "--sglang-version", "0.5.12", "--trials", "3", "--confirm", "1", "--run", "a",
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LiveState]:
    """Note what live.json says whenever a launch begins."""
    said: list[LiveState] = []
    launch = SimulatedEngine.launch

    def looked(engine: SimulatedEngine, *arguments: Any) -> Any:
        live = read_live(tmp_path / "a")
        assert live is not None
        said.append(live)
        return launch(engine, *arguments)

    monkeypatch.setattr(SimulatedEngine, "launch", looked)
    return said


def test_it_tells_trial_phase_and_progress(sgtune: Sgtune, tmp_path: Path, seen: list[LiveState]) -> None:
    ran = sgtune(*QUESTION, "--runs", str(tmp_path), "--budget", "100h")
    assert ran.code == 0
    assert len(seen) >= 4  # three launches and those to confirm
    for live in seen:
        assert live.running
        assert live.phase == "starting the server"
        assert live.trial
        assert live.trial.asked == 16
        assert live.trial.points == ()
        assert live.trial.band_tok_s[0] < live.trial.predicted_tok_s < live.trial.band_tok_s[1]
        assert (live.trials, live.confirm, live.budget_s) == (3, 1, 360_000.0)
    assert seen[0].trial.source == "SGLang default"
    end = read_live(tmp_path / "a")
    assert end
    assert (end.state, end.trial, end.message) == (RunState.FINISHED, None, "3 launches done")
    assert not end.running
    assert end.ceiling_tok_s > 0


def test_points_come_one_by_one(sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.engines.simulated import SimulatedServer

    measure, steps = SimulatedServer.measure, []

    def looked(server: SimulatedServer, workload: Any) -> Any:
        live = read_live(tmp_path / "a")
        assert live
        assert live.trial
        steps.append((live.phase, len(live.trial.points)))
        return measure(server, workload)

    monkeypatch.setattr(SimulatedServer, "measure", looked)
    assert sgtune(*QUESTION, "--runs", str(tmp_path)).code == 0
    assert [measured for _, measured in steps[:3]] == [0, 1, 2]
    assert {phase for phase, _ in steps[:3]} == {f"measuring {clients} clients" for clients in (2, 8, 16)}


def test_a_lost_gpu_and_an_interrupt_are_told_apart(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise LaunchFailed(FailureKind.GPU_LOST, "GPU 3 fell off the bus", 1.0)

    monkeypatch.setattr(SimulatedEngine, "launch", lost)
    assert sgtune(*QUESTION, "--runs", str(tmp_path)).code == 1
    failed = read_live(tmp_path / "a")
    assert failed
    assert failed.state is RunState.FAILED
    assert "GPU 3 fell off the bus" in failed.message

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SimulatedEngine, "launch", interrupted)
    assert sgtune(*QUESTION, "--runs", str(tmp_path), "--resume").code == 130
    stopped = read_live(tmp_path / "a")
    assert stopped
    assert stopped.state is RunState.INTERRUPTED


def test_the_evidence_is_the_same_with_a_folder_that_cannot_hold_it(sgtune: Sgtune, tmp_path: Path) -> None:
    assert sgtune(*QUESTION, "--runs", str(tmp_path / "x")).code == 0
    (tmp_path / "y" / "a" / LIVE_FILE / "in the way").mkdir(parents=True)
    assert sgtune(*QUESTION, "--runs", str(tmp_path / "y")).code == 0
    assert read_live(tmp_path / "y" / "a") is None
    evidence = [(tmp_path / side / "a" / "trials.jsonl").read_bytes() for side in "xy"]
    assert evidence[0] == evidence[1]
    assert not list((tmp_path / "y" / "a").glob(".live.json*"))


def test_a_dead_process_is_not_running(sgtune: Sgtune, tmp_path: Path, seen: list[LiveState]) -> None:
    assert sgtune(*QUESTION, "--runs", str(tmp_path)).code == 0
    live = seen[0]
    assert not replace(live, born_s=live.born_s - 100.0).running  # the number was given to another process
    assert replace(live, host="another machine").running  # nobody here can tell
    assert read_live(tmp_path / "nowhere") is None
    (tmp_path / "a" / LIVE_FILE).write_text('{"state":"running","ph')
    assert read_live(tmp_path / "a") is None
