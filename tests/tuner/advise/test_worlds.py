"""Servers with one thing wrong each: the right finding comes first, and where nothing is wrong there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.advise_worlds import CASES, NOTHING, Case, played, world
from models.workload import Slo
from tuner.advise.finding import FindingKind
from tuner.advise.look import AdviseAnswer


def first(answer: AdviseAnswer) -> str:
    return str(answer.findings[0].kind) if answer.findings else NOTHING


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_is_found_first(case: Case) -> None:
    answer = played(case)
    assert answer.servers[0].unexpected is None
    assert first(answer) == case.kind, [finding.evidence for finding in answer.findings]


@pytest.mark.parametrize("clients", [1, 8, 96])
@pytest.mark.parametrize("line", ["--tp 8", "--tp 8 --attn-dp-size 8", "--tp 8 --ep-size 8"])
def test_nothing_is_invented_at_any_load(line: str, clients: int) -> None:
    answer = played(Case(NOTHING, "", line, clients, isl=2000))
    assert answer.findings == ()
    model, seen = answer.servers[0].model, answer.servers[0].seen
    assert model is not None
    assert seen is not None
    assert seen.e2e_ms["mean"] == pytest.approx(model.base.e2e_ms["mean"], rel=0.15)


def test_a_server_40_percent_slower_than_its_model_is_a_finding() -> None:
    slow = world(parameters={"tau_us": 1.5, "eta_w": 0.66, "eta_pf": 0.66, "t_pf0_ms": 1.5})
    answer = played(Case("", "", "--tp 8", world=slow))
    assert first(answer) == FindingKind.SLOWER_THAN_MODEL
    assert 30 < answer.findings[0].gain_percent < 65


def test_the_predicted_gain_is_what_the_change_gives() -> None:
    case = next(case for case in CASES if case.kind == "max_running_too_low")
    before = played(case)
    flag, value = before.findings[0].change.split()[:2]
    assert flag == "--max-running-requests"
    after = played(replace(case, line=f"--tp 8 {flag} {value}"))
    assert after.findings == ()
    rates = [answer.servers[0].seen.output_tok_s for answer in (before, after) if answer.servers[0].seen]
    gained = 100.0 * (rates[1] / rates[0] - 1.0)
    assert gained == pytest.approx(before.findings[0].gain_percent, abs=15.0)
    assert f"--max-running-requests {value}" in before.findings[0].after
    assert "--max-running-requests 16" in before.findings[0].before


def test_an_older_release_is_read_by_its_own_names() -> None:
    case = next(case for case in CASES if case.kind == "graphs_too_small")
    answer = played(replace(case, line="--tp 8 --cuda-graph-max-bs 8"), release="0.5.6")
    assert first(answer) == "graphs_too_small"
    assert answer.servers[0].facts.info["version"] == "0.5.6"
    assert "--cuda-graph-max-bs 64" in answer.findings[0].change


def test_a_limit_that_is_missed_says_by_how_much_and_what_would_keep_it() -> None:
    answer = played(
        Case(NOTHING, "", "--tp 8", clients=64), slos=(Slo.parse("tpot:p99<20ms"), Slo.parse("e2e:p99<99s"))
    )
    missed, kept = answer.servers[0].slos
    assert (missed.kept, kept.kept) == (False, True)
    assert missed.lost_minutes == pytest.approx(1.0, abs=0.1)
    (finding,) = answer.findings
    assert finding.kind is FindingKind.SLO_MISSED
    assert "servers like it" in finding.change
