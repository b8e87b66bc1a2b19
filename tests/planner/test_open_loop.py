"""Plans of an open loop, and queues: what the printed command would show."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from rich.console import Console

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context
from models.serving.open_loop import Draw, in_flight, predict_open_loop, replay_open_loop
from models.workload import Slo, Workload
from planner.launch import launch_spec
from planner.plans.make import Plan, PlanQuestion, make_plan
from planner.plans.search import most_answered
from planner.plans.space import as_launched
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values, to_argv
from tests.documents import document_of
from tuner.cli.views.plan_view import candidate_table

NEWEST = Version("0.5.23")
Sgtune = Callable[..., Any]


def asked(hardware: str = "h200x8", isl: int = 1000, osl: int = 200, **more: Any) -> Plan:
    return make_plan(
        PlanQuestion(
            hardware=hardware_from_catalogue(hardware), arch=deepseek_r1(), version=NEWEST, isl=isl, osl=osl, **more
        )
    )


@pytest.fixture(scope="module")
def rate() -> Plan:
    return asked(request_rate=4.0)


def test_a_rate_is_planned_for_the_p99_in_flight_and_not_for_the_mean(rate: Plan) -> None:
    assert rate.best is not None
    assert rate.meets_target
    found = rate.best.prediction
    assert found.in_flight is not None
    assert found.request_rate == pytest.approx(4.0, rel=0.1)
    assert found.in_flight.mean < found.in_flight.p99 <= rate.best.config.max_running_requests
    assert found.in_flight.mean == pytest.approx(found.request_rate * found.e2e_ms["mean"] / 1e3, rel=0.1), (
        "Little's law"
    )


def test_caps_at_the_mean_in_flight_would_queue_the_bursts(rate: Plan) -> None:
    assert rate.best is not None
    assert rate.best.prediction.in_flight is not None
    mean = max(1, round(rate.best.prediction.in_flight.mean))
    tight = replace(rate.best.config, max_running_requests=mean)
    workload = replace(Workload.checked(1000, 200, mean), request_rate=4.0)
    queued = predict_open_loop(rate.context, tight, workload)
    assert queued.ttft_ms["p99"] > 2.0 * rate.best.prediction.ttft_ms["p99"]


def test_a_rate_beyond_the_machine_is_not_met() -> None:
    plan = asked(request_rate=400.0)
    assert plan.fits
    assert not plan.meets_target
    assert plan.best is not None
    assert "the queue grows without end" in plan.best.misses[0]


@pytest.mark.parametrize(("hardware", "rate", "osl"), [("h200x8", 40.0, 1000), ("4xh200x8", 100.0, 1000)])
def test_a_rate_above_capacity_has_a_growing_queue_and_no_steady_ttft(
    sgtune: Sgtune, hardware: str, rate: float, osl: int
) -> None:
    """Lives of minutes at 40 a second: no replay of a minute sees the queue, the server's limit does."""
    question = ["plan", "--hardware", hardware, "--isl", "1000", "--osl", f"{osl}", "--request-rate", f"{rate}"]
    ran = sgtune(*question, "--slo", "ttft:mean<2s", "--json")
    assert ran.code == 3
    document = document_of("plan", ran.out)
    answer = document["answer"]
    assert answer["queue_grows"] is True
    assert answer["user_tok_s_with_wait"] == 0
    assert set(answer["ttft_ms"].values()) == {None}
    assert answer["output_tok_s"] < rate * osl
    rates = [candidate["output_tok_s"] for candidate in document["candidates"]]
    assert answer["output_tok_s"] == max(rates)
    if "x" in hardware.partition("h200")[0]:
        return  # said alike, and slow
    shown = sgtune(*question).out
    assert "the queue grows without end" in shown
    assert "no steady value" in " ".join(shown.split())
    assert re.search(r"\binf\b", shown) is None


def test_a_server_at_its_very_limit_is_not_said_to_answer_more_than_comes(rate: Plan) -> None:
    assert rate.best is not None
    load = rate.load
    for answered, words in ((4.04, "4 requests/s are the most that is answered"), (3.8, "3.8 of 4 requests/s")):
        assert words in most_answered(replace(rate.best.prediction, request_rate=answered), load)


def test_near_the_limit_the_band_holds_the_chance_of_arrivals_and_the_plan_says_so() -> None:
    far, near = asked("b200x8", 1282, 35, request_rate=2.0), asked("b200x8", 1282, 35, request_rate=14.0)
    assert far.best is not None
    assert near.best is not None
    bands = [each.best.prediction.band["ttft_mean_ms"] for each in (far, near) if each.best is not None]
    widths = [math.log(high / low) for low, high in bands]
    assert widths[1] > 1.1 * widths[0], "chance is added to errors that are there already"
    assert any("TTFT is chance: of 16 windows" in warning for warning in near.best.prediction.warnings)
    assert not any("chance" in warning for warning in far.best.prediction.warnings)


def test_what_keeps_up_has_the_rate_that_is_sent(rate: Plan) -> None:
    for candidate in rate.found.candidates:
        if not candidate.prediction.queue_grows:
            assert candidate.output_tok_s == pytest.approx(4.0 * 200)
    assert rate.best is not None
    assert not rate.best.prediction.queue_grows


def test_predict_says_that_the_queue_of_a_record_grows(sgtune: Sgtune, tmp_path: Path) -> None:
    record = {
        "gpu": "H200", "n_gpus": 8, "engine_version": "0.5.12", "tp": 8, "isl": 1000, "osl": 500, "num_prompts": 400,
        "metric_kind": "serving", "launch_args": "--tp 8",
    }  # fmt: skip
    asked_for = [record | {"id": f"{rate}", "request_rate": rate} for rate in (0.5, 200.0)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked_for))
    ran = sgtune("predict", "--points", str(tmp_path / "asked.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert ran.code == 0, ran.err
    calm, flood = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert not any("grows" in warning for warning in calm["warnings"])
    assert any("grows without end" in warning for warning in flood["warnings"])


def test_requests_in_flight_follow_from_arrivals_and_ends(context: Callable[..., Context]) -> None:
    """Far below saturation every request takes its own time: in flight is rate times latency, p99 by Poisson."""
    belief = context()
    config = asked(concurrency=8).found.candidates[0].config
    workload = replace(Workload.checked(500, 100, 8), request_rate=2.0)
    filled = belief.memory(table_of([config]))
    played = replay_open_loop(belief, config, workload, filled, Draw(least=1000))
    seen = in_flight(played)
    expected = 2.0 * float(played.e2e_s.mean())
    assert seen.mean == pytest.approx(expected, rel=0.15)
    assert seen.p99 == pytest.approx(expected + 2.33 * math.sqrt(expected), abs=2.5)
    assert seen.served_share > 0.97


def test_waiting_in_line_misses_a_promised_speed_unless_a_ttft_limit_allows_it() -> None:
    limit = Slo.parse("tpot:mean<15ms")
    strict = asked(isl=1000, osl=1000, concurrency=64, slos=(limit,))
    assert not strict.meets_target
    assert strict.best is not None
    assert strict.best.prediction.running_requests > 0.9 * 64, "the nearest answer serves the clients"
    allowed = asked(isl=1000, osl=1000, concurrency=64, slos=(limit, Slo.parse("ttft:mean<100s")))
    assert allowed.best is not None
    assert allowed.best.prediction.tpot_ms["mean"] < 15.0
    assert allowed.best.prediction.user_tok_s_with_wait < 0.7 * allowed.best.prediction.user_tok_s


def test_among_equals_memory_is_kept_free_rather_than_filled_with_cache_nobody_uses() -> None:
    few, crowd = asked(isl=1000, osl=1000, concurrency=16), asked(isl=1000, osl=1000, concurrency=2048)
    assert few.best is not None
    assert crowd.best is not None
    assert few.best.ledger.free_gib > 10.0
    assert few.best.ledger.kv_tokens > 2 * 16 * 2000
    assert crowd.best.ledger.free_gib < few.best.ledger.free_gib


@pytest.mark.parametrize("version", ["0.4.5", "0.4.9.post6", "0.5.12", "0.5.23"])
def test_printed_json_exported_and_read_back_are_one_configuration(
    sgtune: Sgtune, tmp_path: Path, version: str
) -> None:
    plan = sgtune(
        "plan", "--hardware", "h200x8", "--isl", "500", "--osl", "500", "--concurrency", "64", "--json",
        "--sglang-version", version,
    )  # fmt: skip
    (tmp_path / "plan.json").write_text(plan.out)
    document = json.loads(plan.out)
    for number, candidate in enumerate(document["candidates"][:4], 1):
        out = tmp_path / str(number)
        ran = sgtune(
            "export",
            "--plan",
            str(tmp_path / "plan.json"),
            "--candidate",
            str(number),
            "--target",
            "bash",
            "--out",
            str(out),
        )
        assert ran.code == 0, ran.err
        text = (out / "launch.sh").read_text()
        words = [w for line in text.splitlines() if line.startswith("  --") for w in line.rstrip("\\ ").split()]
        flags = words[words.index("--trust-remote-code") + 1 : words.index("--host")]
        assert flags == candidate["argv"]
        read = from_values(read_arguments(candidate["argv"], Version(version)).values, Version(version))
        assert to_argv(read, Version(version)) == candidate["argv"]


def test_a_resolved_configuration_and_the_one_typed_for_it_start_the_same_server(rate: Plan) -> None:
    assert rate.best is not None
    typed = as_launched(rate.best.config, NEWEST)
    assert as_launched(typed, NEWEST).schedule_conservativeness == typed.schedule_conservativeness


def test_a_line_for_two_nodes_names_rank_and_address() -> None:
    line = launch_spec(replace(ServerConfig(tp_size=16), nnodes=2), NEWEST).shell_line()
    assert '--node-rank "$NODE_RANK"' in line
    assert '--dist-init-addr "$RANK0_HOST:' in line
    assert "--node-rank" not in launch_spec(ServerConfig(tp_size=8), NEWEST).shell_line()


def test_every_candidate_says_what_stands_behind_it(sgtune: Sgtune) -> None:
    for hardware, known in (("h200x8", True), ("h20x8", False)):
        ran = sgtune(
            "plan", "--hardware", hardware, "--isl", "500", "--osl", "500", "--concurrency", "8", "--no-mtp", "--json"
        )
        document = json.loads(ran.out)
        for candidate in document["candidates"]:
            evidence = candidate["evidence"]
            assert evidence["where"]
            assert (evidence["records"] == 0) == (evidence["mape_percent"] is None)
        if known:
            assert any(c["evidence"]["records"] > 20 for c in document["candidates"])
        assert document["answer"]["evidence"] == document["candidates"][0]["evidence"]


def test_predictions_of_an_open_loop_do_not_depend_on_who_asks_first(context: Callable[..., Context]) -> None:
    belief, config = context(), asked(concurrency=8).found.candidates[0].config
    workload = replace(Workload.checked(500, 100, 8), request_rate=2.0)
    assert predict_open_loop(belief, config, workload) == predict_open_loop(belief, config, workload)


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_table_is_whole_in_a_terminal_of_any_width(rate: Plan, columns: int) -> None:
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(candidate_table(rate, columns))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "…" not in text
    for candidate in rate.found.candidates:
        assert candidate.config.label in text
        assert f"{candidate.prediction.output_tok_s:,.0f}" in text
    assert ("KV tokens" in text) is (columns == 200)
