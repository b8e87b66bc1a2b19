"""`sgtune export`: what a run or a plan becomes on disk, without a word that nobody should read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.launch_files.record import record_of
from planner.launch_files.targets import Target
from planner.launch_lines.read import launch_of_file
from tuner.launch_files.trial_export import clean_command, without_secrets

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "200", "--osl", "50", "--concurrency", "16")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import run_sgtune

    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert run_sgtune("plan", *QUESTION, "--out", str(path)).code == 0
    return path


def test_a_plan_becomes_every_file(sgtune: Sgtune, plan_file: Path, tmp_path: Path) -> None:
    ran = sgtune("export", "--plan", str(plan_file), "--candidate", "2", "--out", str(tmp_path), "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert {Path(name).name for name in document["files"]} == {target.file_name for target in Target}
    candidate = json.loads(plan_file.read_text())["candidates"][1]
    for target in Target:
        path = tmp_path / target.file_name
        found = launch_of_file(path).words
        wanted = [*candidate["argv"]]
        assert [word for word in found if word in wanted] == wanted
        record = record_of(path.read_text(), path.name)
        assert record.basis == "predicted"
        assert record.points[0].output_tok_s == candidate["prediction"]["output_tok_s"]
        assert record.points[0].interval == tuple(candidate["prediction"]["band"]["output_tok_s"])
        text = path.read_text()
        assert "# made by: sgtune " in text
        assert record.hardware_hash in text.split("# record")[0]


def test_check_reads_every_file_as_the_same_launch(sgtune: Sgtune, plan_file: Path, tmp_path: Path) -> None:
    assert sgtune("export", "--plan", str(plan_file), "--out", str(tmp_path), "--model-path", "/m/a b$c").code == 0
    answers = {}
    for target in Target:
        ran = sgtune("check", "--hardware", "h200x8", "--json", "--", str(tmp_path / target.file_name))
        assert ran.code == 0, (target, ran.err)
        answers[target] = json.loads(ran.out)
        assert launch_of_file(tmp_path / target.file_name).words[1] == "/m/a b$c"
    assert answers[Target.BASH]["accepted"] is True
    assert all(answer["resolved"] == answers[Target.BASH]["resolved"] for answer in answers.values())


def test_a_plan_can_come_through_a_pipe(plan_file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner.cli.main", "export", "--plan", "-", "--target", "bash", "--out", str(tmp_path)],
        input=plan_file.read_bytes(), capture_output=True, check=True,
    )  # fmt: skip
    assert b"wrote" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["launch.sh"]


def test_what_keeps_up_is_exported_from_a_plan_where_others_do_not(sgtune: Sgtune, tmp_path: Path) -> None:
    """A queue that grows without end has no TTFT (null): beside it the plan is as good as ever."""
    load = ("--isl", "1440", "--osl", "740", "--request-rate", "4.44", "--json")
    document = json.loads(sgtune("plan", "--hardware", "h200x8", *load).out)
    grows = [candidate["prediction"]["queue_grows"] for candidate in document["candidates"]]
    assert grows[0] is False
    assert True in grows
    (tmp_path / "plan.json").write_text(json.dumps(document))
    words = ("export", "--plan", str(tmp_path / "plan.json"), "--target", "bash", "--out", str(tmp_path / "out"))
    assert sgtune(*words).code == 0
    refused = sgtune(*words, "--candidate", str(1 + grows.index(True)))
    assert refused.code == 2
    assert "cannot keep up with 4.44 requests/s" in " ".join(refused.err.split())


def test_replicas_get_a_router(sgtune: Sgtune, plan_file: Path, tmp_path: Path) -> None:
    document = json.loads(plan_file.read_text())
    document["answer"]["replicas"] = 4
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert sgtune("export", "--plan", str(tmp_path / "plan.json"), "--bundle", str(tmp_path / "b")).code == 0
    assert (tmp_path / "b" / "README.md").read_text().count("http://SERVER") == 4
    assert "  replicas: 4\n" in (tmp_path / "b" / "kubernetes.yaml").read_text()


def test_a_run_becomes_a_bundle_with_its_measured_figures(sgtune: Sgtune, tmp_path: Path) -> None:
    options = ("--engine", "simulated", "--trials", "2", "--runs", str(tmp_path), "--run", "a", "--json")
    tuned = sgtune("tune", *QUESTION, *options)
    assert tuned.code == 0
    best = json.loads(tuned.out)["best"]
    bundle = tmp_path / "bundle"
    ran = sgtune("export", "--runs", str(tmp_path), "--run", "a", "--bundle", str(bundle), "--model-path", "/m/R1 x")
    assert ran.code == 0
    assert {path.name for path in bundle.iterdir()} == {
        *(target.file_name for target in Target),
        "README.md", "bundle.json", "trial.json", "run.json", "hardware.json",
    }  # fmt: skip
    document = json.loads((bundle / "bundle.json").read_text())
    point = document["record"]["points"][-1]
    assert document["record"]["basis"] == "measured"
    assert point["concurrency"] == 16
    assert point["output_tok_s"] == pytest.approx(best["output_tok_s"])
    assert point["interval"] == pytest.approx(best["interval"])
    for target in Target:
        text = (bundle / target.file_name).read_text()
        assert record_of(text, "x").points[-1].interval == tuple(point["interval"])
        assert "90 % band" in text
        assert "95 % interval" in text
    assert launch_of_file(bundle / "sglang.service").words[1] == "/m/R1 x"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--out", "x"), "exactly one of --run NAME and --plan"),
        (("--run", "a", "--plan", "p", "--out", "x"), "exactly one of"),
        (("--run", "a"), "--out DIR"),
        (("--plan", "p", "--trial", "1", "--out", "x"), "--trial belongs to --run"),
        (("--run", "a", "--candidate", "2", "--out", "x"), "--candidate belongs to --plan"),
        (("--run", "a", "--bundle", "x", "--target", "bash"), "--target chooses"),
        (("--plan", "nowhere.json", "--out", "x"), "cannot read plan 'nowhere.json'"),
        (("--run", "a", "--out", "x", "--port", "0"), "--port is 0"),
        (("--run", "a", "--out", "x", "--model-path", ""), "--model-path is ''"),
    ],
)
def test_questions_without_an_answer_name_the_flag(sgtune: Sgtune, words: tuple[str, ...], complaint: str) -> None:
    ran = sgtune("export", *words)
    assert (ran.code, complaint in ran.err) == (2, True)
    assert not Path("x").exists()


def test_a_file_that_is_no_plan_is_an_error(sgtune: Sgtune, plan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    ran = sgtune("export", "--plan", str(other), "--out", str(tmp_path / "x"))
    assert (ran.code, "missing field 'question'" in ran.err) == (2, True)
    ran = sgtune("export", "--plan", str(plan_file), "--candidate", "99", "--out", str(tmp_path / "x"))
    assert (ran.code, "no candidate 99; it has 1 to" in ran.err) == (2, True)


def test_secrets_stay_out_of_files() -> None:
    words = ["--tp-size", "8", "--api-key", "sk-1", "--admin-api-key=sk-2", "--log-requests", "--api-key"]
    assert without_secrets(words) == ["--tp-size", "8", "--log-requests"]
    assert (
        clean_command("sgtune tune --engine local -- --api-key 'a b' --tp 8") == "sgtune tune --engine local -- --tp 8"
    )


def test_plan_starts_without_jinja2() -> None:
    modules = "tuner.cli.main, planner.plans.make, planner.plans.document, sys"
    code = f"import {modules}; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
