"""Several launches in flight: each configuration once, numbers kept, and a resumed run equals the undisturbed one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.children import start_sgtune
from tests.conftest import run_sgtune
from tests.faults.test_tune_faults import question
from tests.left import nothing_left, still_listening
from tuner.evidence.flight import FLIGHT_FILE, FlightLog
from tuner.evidence.trial_lines import head_file, read_trials

Sgtune = Callable[..., Any]
SMALL = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "64", "--engine", "simulated",
    "--sglang-version", "0.5.12", "--trials", "9", "--confirm", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def three_at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    ran = run_sgtune(*SMALL, "--parallel", "3", "--runs", str(runs), "--run", "a", "--json")
    assert ran.code == 0, ran.err
    return runs / "a"


def test_three_at_once_launch_each_configuration_once_in_less_time(three_at_once: Path) -> None:
    records = read_trials(three_at_once / "trials.jsonl")
    launched = [record for record in records if record.launched]
    first = [record for record in launched if record.repeats is None]
    assert len(first) == 9
    assert len({record.config for record in first}) == 9
    assert len({record.number for record in records}) == len(records)
    flights = FlightLog(three_at_once).flights
    assert [flight.number for flight in flights] == sorted(record.number for record in launched)
    assert max(len(flight.beside) for flight in flights) == 2
    document = json.loads((three_at_once / "result.json").read_text())
    assert document["parallel"] == 3
    assert document["elapsed_hours"] < 0.6 * document["engine_hours"]


@pytest.mark.slow
def test_a_run_cut_anywhere_goes_on_to_the_same_end(sgtune: Sgtune, tmp_path: Path, three_at_once: Path) -> None:
    """A kill leaves the flights up to some moment, the records up to another, and perhaps half a line of either."""
    whole, flown = (
        (three_at_once / name).read_bytes().splitlines(keepends=True) for name in ("trials.jsonl", FLIGHT_FILE)
    )
    flights = FlightLog(three_at_once).flights
    for cut in range(0, len(whole), 2):
        run = tmp_path / f"cut-{cut}" / "a"
        shutil.copytree(three_at_once, run)
        (run / "trials.jsonl").write_bytes(b"".join(whole[:cut]) + whole[cut][:40])
        known = sum(flight.known <= cut for flight in flights)
        known -= flights[known - 1].known == cut  # the last one was not written yet
        (run / FLIGHT_FILE).write_bytes(b"".join(flown[:known]) + b'{"num')
        head_file(run / "trials.jsonl").unlink()
        ran = sgtune(*SMALL, "--parallel", "3", "--runs", str(run.parent), "--run", "a", "--resume")
        assert ran.code == 0, ran.err
        for name in ("trials.jsonl", FLIGHT_FILE):
            assert (run / name).read_bytes() == (three_at_once / name).read_bytes(), (cut, name)


def test_a_spoiled_line_of_a_parallel_run_is_repaired_under_its_number(
    sgtune: Sgtune, tmp_path: Path, three_at_once: Path
) -> None:
    run = tmp_path / "a"
    shutil.copytree(three_at_once, run)
    before = read_trials(run / "trials.jsonl")
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("output_tok_s", "output_tok_x", 1)
    (run / "trials.jsonl").write_text("".join(lines))
    assert sgtune(*SMALL, "--parallel", "3", "--runs", str(tmp_path), "--run", "a", "--resume").code == 2
    assert sgtune("runs", "repair", str(run)).code == 0
    after = read_trials(run / "trials.jsonl")
    assert {record.number for record in before} >= {record.number for record in after}
    assert all(record in before for record in after)
    assert len(after) >= len(before) - 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--parallel", "0"), "--parallel is 0; it must be between 1 and 64"),
        (("--parallel", "2", "--fidelity", "slice"), "--fidelity slice tries one configuration at a time"),
        (("--parallel", "2", "--engine", "local"), "--parallel 2 with --engine local"),
    ],
)
def test_what_cannot_fly_side_by_side_is_refused(
    sgtune: Sgtune, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    ran = sgtune(*SMALL, *more, "--runs", str(tmp_path))
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_servers_side_by_side_are_killed_and_taken_up_again(tmp_path: Path) -> None:
    """The emulated engine, two servers at a time; the tuner is killed with both in flight, then interrupted."""
    asked = [*question(tmp_path, boot_s=1.5, trials=4), "--parallel", "2", "--sampler", "random", "--json"]
    run = tmp_path / "runs" / "a"
    for end in ("kill", "interrupt"):
        process = start_sgtune(*asked, *(("--resume",) if run.exists() else ()))
        _wait_until(lambda: _in_the_air(run) == 2)
        process.kill() if end == "kill" else process.send_signal(2)
        process.communicate(timeout=60)
        assert nothing_left(), f"after a {end} a process of ours is left"
        assert not still_listening(run)
    process = start_sgtune(*asked, "--resume")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    records = read_trials(run / "trials.jsonl")
    launched = [record for record in records if record.launched]
    assert len(launched) == 4 == json.loads(out)["launches"]
    assert sorted(record.number for record in launched) == [flight.number for flight in FlightLog(run).flights]
    assert nothing_left()


def _in_the_air(run: Path) -> int:
    """Flights begun less records made, without touching a file that the tuner writes."""
    files = (run / FLIGHT_FILE, run / "trials.jsonl")
    flown, landed = (file.read_bytes().count(b"\n") if file.exists() else 0 for file in files)
    return flown - landed


def _wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
