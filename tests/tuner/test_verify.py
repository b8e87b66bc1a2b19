"""`sgtune verify`: a true file passes, a falsified one fails, and what cannot be verified says why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.launch_files.record import RecordedPoint, record_line, record_of
from tests.documents import document_of
from tests.patience import in_one_of_three
from tuner.engines.build import world_toml
from tuner.engines.world import World
from tuner.launch_files.verification import Agreement, Compared, Verified, read_claim
from tuner.seam import Measurement, Verdict

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "64", "--osl", "16", "--concurrency", "2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("world") / "world.toml"
    file.write_text(world_toml(World(name="quick", boot_s=0.2, noise=0.0)))
    return file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A bundle of a run on the emulated engine: SGLang's default, measured for a second a point."""
    from tests.conftest import run_sgtune

    folder = tmp_path_factory.mktemp("runs")
    tuned = run_sgtune(
        "tune", *QUESTION, "--engine", "emulated", "--world", str(world), "--trials", "1", "--confirm", "0",
        "--point-time", "2s", "--runs", str(folder), "--run", "a",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    exported = run_sgtune("export", "--runs", str(folder), "--run", "a", "--bundle", str(folder / "b"))
    assert exported.code == 0, exported.err
    return folder / "b"


def emulated(sgtune: Sgtune, path: Path, world: Path, *more: str) -> Any:
    options = ("--engine", "emulated", "--world", str(world), "--point-time", "2s")
    return sgtune("verify", str(path), *options, *more)


@pytest.mark.slow
@pytest.mark.alone
def test_a_true_bundle_passes(sgtune: Sgtune, bundle: Path, world: Path) -> None:
    def attempt() -> None:
        ran = emulated(sgtune, bundle, world, "--json")
        document = document_of("verify", ran.out)
        assert (ran.code, document["agrees"]) == (0, True), ran.out
        assert [point["concurrency"] for point in document["points"]][-1] == 2
        assert document["argv"][:2] == ["--model-path", "deepseek-ai/DeepSeek-R1"]

    in_one_of_three(attempt)


def falsified(text: str, factor: float, *, interval: bool) -> str:
    """Return a file's text with the last recorded rate multiplied, its interval too if asked."""
    record = record_of(text, "the file")
    last = record.points[-1]
    low, high = (value * factor if interval else value for value in last.interval)
    false = replace(last, output_tok_s=last.output_tok_s * factor, interval=(low, high))
    return text.replace(record_line(record), record_line(replace(record, points=(*record.points[:-1], false))))


@pytest.mark.slow
def test_one_file_alone_can_be_verified_and_a_falsified_figure_fails(
    sgtune: Sgtune, bundle: Path, world: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sglang.service"
    file.write_text(falsified((bundle / file.name).read_text(), 2.5, interval=True))
    ran = emulated(sgtune, file, world)
    assert ran.code == 1
    assert "is outside the interval" in " ".join(ran.out.split())
    assert "FAIL: differs from recorded performance" in ran.out


@pytest.mark.parametrize("name", ["launch.sh", "compose.yaml", "kubernetes.yaml"])
def test_a_rate_outside_its_own_interval_fails_before_anything_starts(
    sgtune: Sgtune, bundle: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(falsified((bundle / name).read_text(), 1.9, interval=False))
    ran = sgtune("verify", str(tmp_path / name), "--engine", "emulated")
    assert (ran.code, "own interval" in ran.err) == (1, True)


# Notes how it was called and runs what the container would run as the emulated server.
DOCKER = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in rm|ps|image) exit 0;; esac
while [ "$1" != sglang.launch_server ]; do shift; done
shift
exec {python} -m tuner.emulator --hardware h200x8 --world {world} -- "$@"
"""


@pytest.mark.slow
def test_docker_boots_the_files_command_in_the_files_image(
    sgtune: Sgtune, bundle: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, calls = tmp_path / "docker", tmp_path / "calls"
    client.write_text(DOCKER.format(calls=calls, python=sys.executable, world=world))
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ran = sgtune("verify", str(bundle), "--engine", "docker", "--point-time", "2s", "--yes", "--json")
    assert (ran.code, json.loads(ran.out)["file"]) == (0, str(bundle / "docker-run.sh")), ran.err
    *looks, run, remove, last_look = calls.read_text().splitlines()
    assert all(look.split()[0] in ("image", "ps") for look in (*looks, last_look))
    assert "--ulimit=memlock=-1 " in run  # the file's own limits
    assert " ".join(read_claim(bundle / "docker-run.sh").line.words) in run
    assert " lmsysorg/sglang:v0.5.23 python3 -m sglang.launch_server " in run
    assert "HF_HOME" not in run  # a place of the file's own container
    assert remove.startswith("rm --force sgtune-0-")


@pytest.mark.slow
def test_the_servers_own_refusal_is_shown(sgtune: Sgtune, bundle: Path, world: Path) -> None:
    ran = emulated(sgtune, bundle, world, "--", "--mem-fraction-static", "0.2")
    assert ran.code == 1
    assert "did not run (oom" in ran.err


def test_a_bundle_changed_by_hand_fails_before_anything_starts(sgtune: Sgtune, bundle: Path, tmp_path: Path) -> None:
    for name in ("launch.sh", "bundle.json"):
        (tmp_path / name).write_text((bundle / name).read_text())
    changed = (bundle / "launch.sh").read_text().replace('"isl": 64', '"isl": 65')
    (tmp_path / "launch.sh").write_text(changed)
    ran = sgtune("verify", str(tmp_path), "--engine", "emulated")
    assert (ran.code, "record different figures" in ran.err) == (1, True)


def test_the_environment_sglangs_yaml_cannot_hold_comes_from_its_header(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "sglang.yaml"
    text = (bundle / "sglang.yaml").read_text()
    file.write_text(text.replace("# start:", "# environment: SGLANG_A=1\n# start:"))
    assert read_claim(file).environment == {"SGLANG_A": "1"}
    for name in ("compose.yaml", "kubernetes.yaml", "docker-run.sh", "sglang.service"):
        assert read_claim(bundle / name).environment == {}


def test_what_cannot_be_verified_says_why(sgtune: Sgtune, bundle: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.sh"
    plain.write_text("python3 -m sglang.launch_server --model-path x\n")
    cases = [
        ((str(tmp_path),), "is not a bundle"),
        ((str(tmp_path / "none.sh"),), "cannot read launch file"),
        ((str(plain),), "carries no figures"),
        ((str(bundle), "--engine", "simulated"), "--engine simulated starts no server"),
        ((str(bundle), "--python", "no-such-python"), "--python: no program 'no-such-python'"),
        ((str(bundle), "--hardware", "h999x8"), "h999x8"),
        ((str(bundle), "--point-time", "soon"), "--point-time is 'soon'"),
    ]
    for words, complaint in cases:
        ran = sgtune("verify", *words)
        assert (ran.code, complaint in ran.err) == (2, True), ran.err


def test_the_docker_file_names_its_image(bundle: Path) -> None:
    assert read_claim(bundle / "docker-run.sh").line.image == "lmsysorg/sglang:v0.5.23"
    assert read_claim(bundle / "compose.yaml").line.image == "lmsysorg/sglang:v0.5.23"
    assert read_claim(bundle / "kubernetes.yaml").line.image == "lmsysorg/sglang:v0.5.23"
    assert read_claim(bundle / "launch.sh").line.image is None


def compared(low: float, high: float, *, verdict: Verdict = Verdict.OK) -> Compared:
    figure = RecordedPoint(
        concurrency=4, output_tok_s=100.0, interval=(95.0, 105.0), ttft_mean_ms=1.0, tpot_mean_ms=1.0
    )
    latencies = {"mean": 1.0}
    measured = Measurement(
        concurrency=4, achieved_in_flight=4.0, output_tok_s=(low + high) / 2, output_tok_s_interval=(low, high),
        ttft_ms=latencies, tpot_ms=latencies, e2e_ms=latencies, duration_s=1.0, verdict=verdict, why="too late",
    )  # fmt: skip
    return Compared(recorded=figure, measured=measured)


@pytest.mark.parametrize(
    ("low", "high", "agrees"),
    [(99.0, 101.0, True), (104.0, 106.0, True), (105.0, 107.0, False), (93.0, 95.0, False), (80.0, 130.0, True)],
)
def test_points_agree_when_both_intervals_allow_it(low: float, high: float, agrees: bool) -> None:
    point = compared(low, high)
    assert point.agrees is agrees
    assert bool(point.why) is not agrees


@pytest.mark.parametrize(
    ("verdicts", "agreement"),
    [
        ([Verdict.OK, Verdict.OK], Agreement.AGREES),
        ([Verdict.OK, Verdict.UNSTEADY], Agreement.INCONCLUSIVE),
        ([Verdict.CLIENT_LIMITED, Verdict.CLOCK_JUMP], Agreement.INCONCLUSIVE),
        ([Verdict.UNSTEADY, Verdict.LENGTHS_OFF], Agreement.DIFFERS),
        ([Verdict.ERRORS], Agreement.DIFFERS),
    ],
)
def test_a_disturbed_measurement_is_no_evidence_against_the_file_and_errors_are(
    bundle: Path, verdicts: list[Verdict], agreement: Agreement
) -> None:
    points = tuple(compared(99.0, 101.0, verdict=verdict) for verdict in verdicts)
    verified = Verified(claim=read_claim(bundle), boot_s=1.0, points=points)
    assert verified.agreement is agreement
    assert verified.agrees is (agreement is Agreement.AGREES)
    slow = Verified(claim=read_claim(bundle), boot_s=1.0, points=(*points, compared(50.0, 52.0)))
    assert slow.agreement is Agreement.DIFFERS, "one figure that settled and differs decides"


def test_a_measurement_nobody_may_use_never_agrees() -> None:
    point = compared(99.0, 101.0, verdict=Verdict.CLIENT_LIMITED)
    assert not point.agrees
    assert "too late" in point.why
    assert replace(point, measured=replace(point.measured, verdict=Verdict.OK)).agrees
