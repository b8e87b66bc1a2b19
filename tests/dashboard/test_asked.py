"""The Plan page's question, what-if and sentences, without a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dashboard_scenes import put

from dashboard.readers.commands import duration, plan_answer, progress_of, run_answer, tune_command
from dashboard.readers.explanations import explained
from dashboard.readers.plan_inputs import PlanInputs, what_if
from dashboard.readers.runs import Status, log_tail, read_run, run_names
from hwprobe.errors import InputError
from tuner.evidence.live_state import resumed

ASKED = PlanInputs(hardware="nf5688g7", sglang_version="0.5.23", isl=1000, osl=1000, concurrency=1024)


@pytest.mark.parametrize(
    "asked",
    [
        replace(ASKED, slo=("tpot:mean<50ms", "ttft:p99<60s"), mtp=False, range_ratio=0.5),
        replace(ASKED, concurrency=None, users=30, min_user_tok_s=20.0, mtp_acceptance=0.8),
        replace(ASKED, concurrency=None, request_rate=2.5, isl=300, osl=200),
    ],
)
def test_the_command_shown_gives_the_same_answer(sgtune: Callable[..., Any], asked: PlanInputs) -> None:
    ran = sgtune(*shlex.split(asked.command())[1:], "--json")
    document, plan = json.loads(ran.out), asked.plan()
    assert plan.best
    assert document["answer"]["user_tok_s"] == plan.best.prediction.user_tok_s
    assert document["meets_target"] == plan.meets_target


def test_without_a_change_what_if_is_the_plan() -> None:
    plan = ASKED.plan()
    best = plan.found.candidates[0]
    same = what_if(plan, best.config, plan.concurrency, {})
    assert same.prediction == best.prediction
    assert same.ledger == best.ledger
    assert same.objection == ""


def test_what_if_objects_with_sglangs_rule_or_the_memory() -> None:
    plan = ASKED.plan()
    config = plan.found.candidates[0].config
    assert "OOM" in what_if(plan, config, 1024, {"mem_fraction_static": 0.98}).objection
    too_little = what_if(plan, config, 1024, {"mem_fraction_static": 0.5})
    assert too_little.prediction is None
    assert "cannot hold one request" in too_little.objection
    assert what_if(plan, config, 64, {}).prediction


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (ASKED, "1,024 clients fit on one node at 17.7 tok/s each ("),
        (replace(ASKED, concurrency=1), "1 client fits on one node at"),
        (replace(ASKED, hardware="h100x8"), "1,024 clients do not fit on h100x8: every layout is at least"),
        (replace(ASKED, concurrency=None, users=40, min_user_tok_s=20.0), "40 users fit on one node at"),
        (replace(ASKED, slo=("tpot:mean<1ms",)), "Target unreachable: tpot:mean<1ms missed"),
    ],
)
def test_the_answer_in_one_sentence(asked: PlanInputs, says: str) -> None:
    assert plan_answer(asked.plan()).startswith(says)


def test_every_number_shows_where_it_comes_from() -> None:
    plan = ASKED.plan()
    best = plan.found.candidates[0]
    lines = {line.quantity: line for line in explained(plan, best)}
    assert lines["KV headroom"].numbers.endswith(f"= {best.ledger.headroom_gib:,.0f} GiB")
    assert lines["KV tokens"].numbers.endswith(f"= {best.ledger.kv_tokens:,}")
    assert lines["decode step"].numbers.endswith(f"= {best.prediction.step_ms:.1f} ms")
    assert "(140.4 - 2.5) x 0.840 - 95.2 = 20.6 GiB" in lines["KV pool of a GPU"].numbers


def test_a_bad_question_is_named() -> None:
    with pytest.raises(InputError, match="SLO 'fast' does not parse"):
        replace(ASKED, slo=("fast",)).plan()


def test_a_changed_hardware_file_is_planned_for_anew(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the dashboard reads files below its roots alone
    text = (finished / "hardware.json").read_text()
    file = tmp_path / "hardware.json"
    file.write_text(text)
    asked = replace(ASKED, hardware=str(file), concurrency=8)
    before = asked.plan().best
    file.write_text(text.replace("143771", "150000"))
    after = asked.plan().best
    assert before
    assert after
    assert after.ledger.card_gib > before.ledger.card_gib


def test_runs_are_listed_newest_first_and_strangers_are_not_runs(finished: Path, tmp_path: Path) -> None:
    put(finished, tmp_path / "a", "finished")
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "a" / "newer").symlink_to(put(finished, tmp_path / "b", "running"))
    assert run_names(tmp_path / "a") == ["newer", "small"]
    assert run_names(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("empty", Status.EMPTY), ("running", Status.RUNNING), ("finished", Status.FINISHED),
        ("failed", Status.FAILED), ("torn", Status.FINISHED),
    ],
)  # fmt: skip
def test_a_run_knows_where_it_stands(finished: Path, tmp_path: Path, state: str, status: Status) -> None:
    run = put(finished, tmp_path, state)
    assert read_run(tmp_path, run.name).status is status
    (run / "live.json").write_text('{"state":"runn')  # half a file, as after a power cut, is as none
    without = read_run(tmp_path, run.name).status
    assert without is {"empty": Status.EMPTY, "running": Status.INTERRUPTED}.get(state, Status.FINISHED)


def test_a_line_that_is_no_record_costs_only_itself(finished: Path, tmp_path: Path) -> None:
    run = put(finished, tmp_path, "finished")
    whole = len(read_run(tmp_path, run.name).records)
    lines = (run / "trials.jsonl").read_text().splitlines()
    lines[2] = '{"number":2}'
    (run / "trials.jsonl").write_text("\n".join(lines) + "\n")
    seen = read_run(tmp_path, run.name)
    assert len(seen.records) == whole - 1
    assert seen.notes[0].startswith("trials.jsonl, line 3 is left out")


def test_progress_counts_launches_and_estimates_the_rest(finished: Path, tmp_path: Path) -> None:
    put(finished, tmp_path, "running")
    done = progress_of(read_run(tmp_path, "small"))
    assert (done.launches, done.asked) == (3, 5)
    assert done.eta_s == pytest.approx(4 * done.spent_s / 3)  # two more launches, two to confirm
    assert progress_of(read_run(finished.parent, "small")).eta_s is None
    assert run_answer(read_run(finished.parent, "small")).startswith("Finished (5 launches done): best is")


def test_the_commands_of_a_run_are_ones_the_tuner_accepts(
    sgtune: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    put(finished, tmp_path, "finished")
    words = shlex.split(tune_command(read_run(tmp_path, "small"), resume=True))
    ran = sgtune(*words[1:])
    assert ran.code == 0, ran.err
    assert (tmp_path / "small" / "trials.jsonl").read_bytes() == (finished / "trials.jsonl").read_bytes()


def test_a_run_is_resumed_with_all_that_was_typed() -> None:
    typed = "sgtune tune --hardware h200x8 --world 'a b.toml' --mtp-acceptance 0.6 --run=old --runs there -- --foo 1"
    assert resumed(typed, Path("/runs/new")) == (
        "sgtune tune --hardware h200x8 --world 'a b.toml' --mtp-acceptance 0.6 --runs /runs --run new --resume "
        "-- --foo 1"
    )


def test_the_log_is_read_from_its_end(finished: Path, tmp_path: Path) -> None:
    run = put(finished, tmp_path, "finished")
    log = run / "trials" / "0" / "server.log"
    log.write_bytes(b"x" * 100_000 + b"\n" + b"\n".join(b"line %d \xff" % n for n in range(50)) + b"\n")
    seen = log_tail(read_run(tmp_path, run.name), 0, lines=3).splitlines()
    assert [line.split(" ")[1] for line in seen] == ["47", "48", "49"]
    assert log_tail(read_run(tmp_path, run.name), 77) == ""


@pytest.mark.parametrize(
    ("seconds", "says"), [(-1, "0 s"), (42, "42 s"), (200, "3.3 min"), (3264, "54 min"), (7560, "2.1 h")]
)
def test_durations(seconds: float, says: str) -> None:
    assert duration(seconds) == says
