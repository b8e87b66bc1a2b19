"""Faults 3, 18 to 20, 22 to 24 and 29: a whole `sgtune tune` on the emulated engine, interrupted and broken."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from hwprobe.holds import Held, Hold
from tests.children import start_sgtune
from tests.left import marked, nothing_left, still_listening
from tuner.engines.build import world_toml
from tuner.engines.faults import Fault, FaultKind
from tuner.engines.world import World
from tuner.server.gate import GpuLocks
from tuner.server.ports import is_free

Sgtune = Callable[..., Any]
TRIALS = 2


def question(tmp_path: Path, *faults: Fault, boot_s: float = 0.3, trials: int = TRIALS) -> list[str]:
    world = tmp_path / "world.toml"
    world.write_text(world_toml(World(name="test", boot_s=boot_s, noise=0.0, faults=faults)))
    return [
        "tune", "--hardware", "h200x8", "--sglang-version", "0.5.12", "--isl", "32", "--osl", "8", "--concurrency", "2",
        "--engine", "emulated", "--world", str(world), "--trials", str(trials), "--point-time", "0.2s", "--no-mtp",
        "--runs", str(tmp_path / "runs"), "--run", "a", "--confirm", "0",
    ]  # fmt: skip


def records(tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "runs" / "a" / "trials.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def launched(tmp_path: Path) -> list[dict[str, Any]]:
    return [record for record in records(tmp_path) if record["outcome"] != "ruled_out"]


def wait_until(true: Callable[[], object], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert nothing_left(), marked()


def test_fault_03_points_measured_before_the_server_died_are_kept(sgtune: Sgtune, tmp_path: Path) -> None:
    died = Fault(kind=FaultKind.OOM, count=2, launches=(0,))
    ran = sgtune(*question(tmp_path, died, trials=2), "--json")
    assert ran.code == 0, ran.err
    first, second = [record for record in records(tmp_path) if record["outcome"] != "ruled_out"]
    assert first["outcome"] == "infeasible", first
    assert first["failure"] == "oom_load"
    assert first["reason"].startswith("at concurrency 2: ")
    assert [point["concurrency"] for point in first["points"]] == [1]
    assert first["constraints"]["memory"] > 0
    assert second["outcome"] == "measured"


def test_what_the_machine_does_wrong_is_tried_again_and_then_left(sgtune: Sgtune, tmp_path: Path) -> None:
    killed = Fault(kind=FaultKind.EXIT, phase="weights", code=-9, launches=(0,))
    ran = sgtune(*question(tmp_path, killed, trials=2), "--json")
    assert ran.code == 0, ran.err
    first, second = records(tmp_path)
    assert (first["outcome"], first["failure"]) == ("failed", "unknown")
    assert second["outcome"] == "measured"
    assert json.loads(ran.out)["launches"] == 2


def test_what_only_an_operator_can_mend_stops_the_run_resumably(sgtune: Sgtune, tmp_path: Path) -> None:
    missing = Fault(
        kind=FaultKind.EXIT,
        phase="weights",
        text="RuntimeError: Cannot find any model weights with `x`",
        launches=tuple(range(1, 9)),
    )
    arguments = question(tmp_path, missing, trials=2)
    ran = sgtune(*arguments)
    assert ran.code == 1
    assert re.search(r"trial \d stopped the run \(weights_missing\)", ran.err)
    assert "--resume" in ran.err
    assert "Traceback" not in ran.err
    assert len(launched(tmp_path)) == 1
    again = sgtune(*arguments, "--resume")
    assert again.code == 1, "it is not repaired yet"
    assert len(launched(tmp_path)) == 1


def test_fault_29_a_flag_this_release_does_not_know_is_refused_before_any_launch(
    sgtune: Sgtune, tmp_path: Path
) -> None:
    ran = sgtune(*question(tmp_path), "--", "--no-such-flag", "3")
    assert ran.code == 2
    assert "--no-such-flag" in ran.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_faults_18_and_19_an_interrupt_stops_cleanly_and_resumes(
    sgtune: Sgtune, tmp_path: Path, number: signal.Signals
) -> None:
    process = start_sgtune(*question(tmp_path, boot_s=1.0))
    wait_until(lambda: len(records(tmp_path)) >= 1 and marked())
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 20
    assert "--resume" in said
    assert nothing_left(0.5)
    before = records(tmp_path)
    ran = sgtune(*question(tmp_path, boot_s=1.0), "--resume", "--json")
    assert ran.code == 0, ran.err
    assert records(tmp_path)[: len(before)] == before
    assert json.loads(ran.out)["launches"] == TRIALS


def test_fault_18_a_second_control_c_kills_at_once(tmp_path: Path) -> None:
    stubborn = Fault(kind=FaultKind.IGNORE_SIGTERM, phase="import")
    leader, follower = pty.openpty()
    process = start_sgtune(*question(tmp_path, stubborn, boot_s=0.5), stdin=follower, start_new_session=True)
    log = tmp_path / "runs" / "a" / "trials" / "0" / "server.log"
    wait_until(lambda: log.exists() and "fired up" in log.read_text())
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 130
    assert time.monotonic() - began < 8.0, "SIGKILL should not have waited for the drain of 20 s"
    assert nothing_left(3.0)
    os.close(leader)
    os.close(follower)


def test_fault_22_a_lock_file_from_before_a_reboot_holds_nobody_up(sgtune: Sgtune, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".holder").write_text("1\n")  # a living process that never held it
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "GPU-1.lock").touch()
    (locks / "GPU-1.holder").write_text('{"pid": 1, "host": "elsewhere", "command": "sgtune"}')
    GpuLocks(["GPU-1"], locks).release()
    assert sgtune(*question(tmp_path, trials=1)).code == 0


def test_fault_23_a_second_tuner_is_told_who_holds_the_run_or_the_gpu(sgtune: Sgtune, tmp_path: Path) -> None:
    process = start_sgtune(*question(tmp_path, boot_s=2.0))
    wait_until(lambda: bool(marked()))
    ran = sgtune(*question(tmp_path, boot_s=2.0), "--resume")
    assert ran.code == 2
    assert f"in use by process {process.pid}" in ran.err
    process.kill()
    process.communicate()
    (tmp_path / "locks").mkdir()
    held = GpuLocks(["GPU-1", "GPU-2"], tmp_path / "locks")
    with pytest.raises(InputError, match=f"GPU GPU-2 is in use by another sgtune: process {os.getpid()} on "):
        GpuLocks(["GPU-2"], tmp_path / "locks")
    held.release()
    GpuLocks(["GPU-2"], tmp_path / "locks").release()


def test_fault_24_a_disk_that_fills_up_loses_nothing_recorded(sgtune: Sgtune, tmp_path: Path) -> None:
    """The kernel refuses writes beyond RLIMIT_FSIZE as it does on a full disk: in the middle of a record."""
    arguments = question(tmp_path)
    assert sgtune(*question(tmp_path, trials=1)).code == 0
    size = (tmp_path / "runs" / "a" / "trials.jsonl").stat().st_size
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from tuner.evidence.run_folder import RunFolder; from pathlib import Path; real = RunFolder.append\n"
        "def append(self, record):\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, resource.RLIM_INFINITY))\n"
        "    try: real(self, record)\n"
        "    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "RunFolder.append = append\n"
        "from tuner.cli.main import main; sys.argv = ['sgtune', *sys.argv[1:]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--resume"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make room and continue with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_left()
    before = records(tmp_path)
    assert len(before) == 1
    assert sgtune(*arguments, "--resume").code == 0
    assert records(tmp_path)[:1] == before
    assert len(records(tmp_path)) >= TRIALS


@dataclass(frozen=True)
class Moment:
    """A stage of a run, and the longest to go on after it was seen."""

    reached: Callable[[Path, int], object]  # the run folder, and how many trials were recorded before
    then_s: float


def _log(folder: Path) -> str:
    logs = sorted(folder.glob("trials/*/server.log"), key=lambda log: int(log.parent.name))
    return logs[-1].read_text(errors="replace") if logs else ""


# From the first import to the writing of a record. A slow machine reaches them later, not less often.
MOMENTS = (
    Moment(lambda folder, known: True, 1.5),
    Moment(lambda folder, known: folder.exists(), 0.3),
    Moment(lambda folder, known: marked(), 0.6),
    Moment(lambda folder, known: "Load weight begin" in _log(folder), 0.3),
    Moment(lambda folder, known: "fired up" in _log(folder), 0.6),
    Moment(lambda folder, known: len((folder / "trials.jsonl").read_bytes().split(b"\n")) - 1 > known, 0.2),
)


def kill_at(process: subprocess.Popen[str], moment: Moment, after_s: float, folder: Path, known: int) -> bool:
    """SIGKILL the tuner `after_s` past the moment; return False if its run ended before. Raises AssertionError."""

    def reached() -> bool:
        with suppress(FileNotFoundError):
            return bool(moment.reached(folder, known))
        return False

    wait_until(lambda: process.poll() is not None or reached(), 120.0)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=after_s)
        return False
    process.kill()
    process.communicate()
    return True


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("demanded", [12, pytest.param(60, marks=pytest.mark.deep)])
def test_fault_20_kills_leave_no_process_no_port_no_lock_and_lose_no_trial(tmp_path: Path, demanded: int) -> None:
    """SIGKILL at seeded moments of a run that is resumed after each; counted over all of them."""
    dice = random.Random(20)
    arguments = question(tmp_path, boot_s=0.3, trials=40)
    folder = tmp_path / "runs" / "a"
    processes = ports = locks = kills = recorded = 0
    known: list[dict[str, Any]] = []
    while kills < demanded:
        resume = ["--resume"] if (folder / "run.toml").exists() else []
        process = start_sgtune(*arguments, *resume)
        moment = MOMENTS[kills % len(MOMENTS)]
        if kill_at(process, moment, moment.then_s * dice.random(), folder, len(known)):
            kills += 1
        else:
            assert process.returncode == 0
            folder.rename(tmp_path / f"done-{kills}")  # the run was finished: begin another
            known = []
        processes += not nothing_left()
        ports += bool(still_listening(folder))
        if folder.exists():
            try:
                Hold(folder / ".lock").release()
            except Held:
                locks += 1
        file = folder / "trials.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        now = [json.loads(line) for line in lines]
        assert now[: len(known)] == known, "a record changed or was lost"
        assert [record["number"] for record in now] == list(range(len(now)))
        recorded += len(now) > len(known)
        known = now
    assert recorded >= demanded // len(MOMENTS) / 2, "the kills came too early to mean anything"
    assert (processes, ports, locks) == (0, 0, 0)


def test_the_marker_is_found_in_a_living_process_only() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"],
                             env={**os.environ, "SGTUNE_SERVER": "elsewhere"})  # fmt: skip
    wait_until(lambda: child.pid in marked("elsewhere"))
    child.kill()
    child.wait()
    assert marked("elsewhere") == []
    with socket.socket() as probe:
        probe.bind(("", 0))
        probe.listen()
        assert not is_free(probe.getsockname()[1])
