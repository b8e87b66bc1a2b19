"""Plans: the answers a user would check by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from models.architecture import deepseek_r1
from models.costs.memory import memory
from models.layout import table_of
from models.workload import Slo
from planner.fleets.plan_document import plan_document
from planner.plans.candidates import Found
from planner.plans.capacity import NEAR_ENOUGH, one_fewer, users_per_server
from planner.plans.frontier import pareto_front
from planner.plans.make import Plan, PlanQuestion, make_plan, servers_for
from planner.plans.search import SAFE_FREE_GIB
from planner.plans.seeds import spread_seeds
from planner.rules import Question, first_error


def asked(hardware: str = "nf5688g7", version: str = "0.5.23", isl: int = 1000, osl: int = 1000, **more: Any) -> Plan:
    question = PlanQuestion(
        hardware=hardware_from_catalogue(hardware),
        arch=deepseek_r1(),
        version=Version(version),
        isl=isl,
        osl=osl,
        **more,
    )
    return make_plan(question)


@pytest.fixture(scope="module")
def crowd() -> Plan:
    return asked(concurrency=1024)


def test_the_founding_question(crowd: Plan) -> None:
    best = crowd.best
    assert best is not None
    assert crowd.fits
    assert best.prediction.running_requests == 1024
    assert best.config.attn_dp_size > 1, "1,024 users need more KV cache than TP's one copy"
    assert best.prediction.output_tok_s > 3975.76
    assert best.ledger.headroom_gib > 100
    assert best.ledger.free_gib >= SAFE_FREE_GIB


def test_ranked_best_first_and_every_loser_has_a_reason(crowd: Plan) -> None:
    rates = [c.prediction.output_tok_s for c in crowd.found.candidates]
    assert rates == sorted(rates, reverse=True)
    assert all(c.why for c in crowd.found.candidates)
    assert len({c.config.label for c in crowd.found.candidates}) == len(rates)


def test_every_rejection_has_a_reason_and_the_counts_add_up(crowd: Plan) -> None:
    assert crowd.found.rejected
    assert all(item.reason for item in crowd.found.rejected)
    assert sum(crowd.found.rejected_by_reason().values()) == len(crowd.found.rejected)


def test_the_ledger_shown_is_the_ledger_of_the_flags_shown(crowd: Plan) -> None:
    for candidate in crowd.found.candidates:
        filled = memory(crowd.context.arch, crowd.context.machine, table_of([candidate.config]), crowd.context.version)
        assert int(filled.kv_tokens[0]) == candidate.ledger.kv_tokens
        assert sum(candidate.ledger.per_gpu_gib.values()) == pytest.approx(candidate.ledger.card_gib)


def test_eight_h100_do_not_fit_and_two_nodes_do() -> None:
    plan = asked("h100x8", concurrency=64)
    assert not plan.fits
    assert plan.shortage_gib is not None
    assert 1.0 < plan.shortage_gib < 30.0
    assert plan.nodes == 2
    assert plan.node_answer is not None
    assert plan.node_answer.startswith("It fits on 2 nodes")
    assert "tok/s for 64 clients" in plan.node_answer
    assert asked("2xh100x8", concurrency=64).fits


def test_what_no_cluster_of_ours_holds() -> None:
    plan = asked("l40sx1", concurrency=1)
    assert not plan.fits
    assert plan.node_answer is None


@pytest.mark.parametrize(
    ("isl", "clients", "figure"), [(100, 1, 33.3), (100, 16, 20.0), (100, 64, 10.4), (1000, 1024, 3975.76)]
)
def test_published_figures_stand_beside_the_prediction(isl: int, clients: int, figure: float) -> None:
    found = asked(version="0.4.3", isl=isl, concurrency=clients).published
    assert found is not None
    assert found.published == figure
    assert found.residual_percent == pytest.approx(100 * (figure / found.predicted - 1)), "published over predicted"


def test_no_published_figure_is_claimed_for_another_question() -> None:
    assert asked(version="0.5.12", isl=100, concurrency=16).published is None
    assert asked("h200x8", "0.4.3", isl=100, concurrency=16).published is None
    assert asked(version="0.4.3", isl=101, concurrency=16).published is None


def test_a_latency_limit_changes_the_answer_and_is_kept() -> None:
    free = asked(concurrency=256)
    bound = asked(concurrency=256, slos=(Slo.parse("tpot:mean<22ms"), Slo.parse("ttft:mean<120s")))
    assert free.best is not None
    assert bound.best is not None
    assert free.best.prediction.tpot_ms["mean"] > 22.0
    assert bound.meets_target
    assert bound.best.prediction.tpot_ms["mean"] <= 22.0
    assert bound.best.prediction.output_tok_s < free.best.prediction.output_tok_s


def test_an_impossible_limit_gets_the_nearest_answer_and_the_miss() -> None:
    plan = asked(concurrency=64, slos=(Slo.parse("tpot:p99<1ms"),))
    assert plan.fits
    assert not plan.meets_target
    assert plan.best is not None
    assert "tpot:p99<1ms missed" in plan.best.misses[0]


def test_an_impossible_rate_says_so() -> None:
    plan = asked(request_rate=900.0)
    assert plan.fits
    assert not plan.meets_target


def test_users_at_a_speed_get_a_number_of_servers() -> None:
    plan = asked(users=3000, min_user_tok_s=20.0, mtp=False)
    assert plan.meets_target
    assert plan.replicas >= 2
    assert plan.replicas * plan.concurrency >= 3000
    assert plan.best is not None
    assert plan.best.prediction.user_tok_s >= 20.0 * 0.97
    assert not asked(users=1, min_user_tok_s=100000.0 / 2).meets_target


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ({}, "specify the load with one of"),
        ({"concurrency": 1, "request_rate": 1.0}, "specify the load with one of"),
        ({"users": 5}, "go together"),
        ({"concurrency": 1, "min_user_tok_s": 5.0}, "go together"),
        ({"request_rate": 0.0}, "--request-rate"),
        ({"request_rate": float("nan")}, "--request-rate"),
        ({"users": 0, "min_user_tok_s": 5.0}, "--users is 0"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"concurrency": 1, "isl": 163_000}, "exceed the model's context of 163,840"),
        ({"concurrency": 1, "acceptance": 1.0}, "--mtp-acceptance"),
    ],
)
def test_questions_without_meaning(question: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        asked(**question)


def test_the_document_carries_the_firm_fields(crowd: Plan) -> None:
    document = plan_document(crowd)
    assert {"question", "fits", "answer", "candidates", "rejected", "pareto", "warnings"} <= set(document)
    assert {
        "nodes", "running_requests", "output_tok_s", "user_tok_s", "ttft_ms", "tpot_ms", "headroom_gib", "kv_tokens",
    } <= set(document["answer"])  # fmt: skip
    for candidate in document["candidates"]:
        assert {"config", "argv", "prediction", "ledger", "kv_tokens"} <= set(candidate)
    assert all({"config", "reason"} <= set(item) for item in document["rejected"])


def test_one_output_token_is_a_question_too() -> None:
    plan = asked(concurrency=8, osl=1)
    assert plan.best is not None
    assert plan.best.prediction.tpot_ms["mean"] == 0.0
    assert plan.best.prediction.user_tok_s > 0


def test_a_crowd_waits_in_line_and_the_plan_does_not() -> None:
    few, many = asked("h200x8", concurrency=4096), asked("h200x8", concurrency=200_000)
    assert few.best is not None
    assert many.best is not None
    assert many.best.prediction.ttft_ms["mean"] > 10 * few.best.prediction.ttft_ms["mean"]
    assert many.best.prediction.limiting == "KV cache capacity"


def test_what_no_gpu_count_mends_says_what_would() -> None:
    plan = asked("a100x8", concurrency=4)
    assert not plan.fits
    assert plan.shortage_gib is None
    assert "fp8-hardware" in plan.found.rejected_by_reason()


def test_versions_differ_in_what_they_can_do(crowd: Plan) -> None:
    old = asked(version="0.4.3", concurrency=1024)
    assert all(c.config.speculative is None for c in old.found.candidates)
    assert old.best is not None
    assert crowd.best is not None
    assert "--enable-dp-attention" in old.argv(old.best)
    assert "--attn-dp-size" in crowd.argv(crowd.best)


def test_no_candidate_breaks_a_rule_of_sglang() -> None:
    """A chunk is divided by the attention-DP ranks and must stay a multiple of Blackwell's page of 64."""
    plan = asked("8xb200x8", concurrency=512, mtp=False)
    assert any(c.config.attn_dp_size == 64 for c in plan.found.candidates)
    for candidate in plan.found.candidates:
        context = plan.context
        question = Question(
            config=candidate.config, arch=context.arch, machine=context.machine, version=context.version
        )
        assert first_error(question) is None


def test_gpus_nobody_fitted_are_warned_of() -> None:
    assert not any("fitted on" in warning for warning in asked("b200x8", concurrency=16).warnings)
    assert any("fitted on Hopper" in warning for warning in asked("2xa100x8", concurrency=16).warnings)


def test_seeds_keep_a_margin_and_differ(crowd: Plan) -> None:
    seeds = spread_seeds(crowd.found.candidates, 140.4, 4)
    best = max(c.prediction.output_tok_s for c in crowd.found.candidates)
    assert 2 <= len(seeds) <= 4
    assert all(s.ledger.free_gib >= 0.02 * 140.4 for s in seeds)
    assert all(s.prediction.output_tok_s >= 0.6 * best for s in seeds)
    assert len({s.config.label for s in seeds}) == len(seeds)


def test_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 1.0), (0.5, 9.0)]
    assert pareto_front(points) == [3, 1, 0]
    assert pareto_front([]) == []


def test_the_number_of_servers_is_decided_by_the_whole_space_not_by_the_part_that_was_bisected() -> None:
    """The part's answer may be a little off either way: one server fewer is tried, and more where it does not hold."""
    plan = asked(concurrency=8)
    best = plan.found.candidates[0]

    def carrying(most: int) -> Callable[[int], Found]:
        def at(clients: int) -> Found:
            running = float(clients if clients <= most else most // 2)
            candidate = replace(best, misses=(), prediction=replace(best.prediction, running_requests=running))
            return Found(candidates=(candidate,), rejected=(), evaluated=1)

        return at

    for bisected, true, servers in ((97, 100, 10), (100, 100, 10), (105, 100, 10), (120, 100, 10)):
        _, clients, found, _ = servers_for(1000, bisected, carrying(true))
        assert found == servers, (bisected, true)
        assert clients == -(-1000 // servers)


def test_few_users_a_server_get_fewer_before_the_speed_is_called_unreachable() -> None:
    """Six were bisected among a part of the space and are a hair too slow: five need thirteen servers more."""
    plan = asked("2xh100x8", isl=16000, osl=200, users=400, min_user_tok_s=50.0)
    assert plan.meets_target
    assert plan.best is not None
    assert plan.best.prediction.user_tok_s >= 50.0
    assert plan.replicas * plan.concurrency >= 400


def test_users_are_bisected_until_the_number_of_servers_is_settled() -> None:
    """What is left open changes no number of servers, and few replays are spent on it."""
    most_calls = 0
    for users in (10, 400, 1000, 3000, 7000):
        for carried_by_one in (1, 3, 31, 99, 133, 200, 797, 1500):
            tried: list[int] = []

            def carried(clients: int, most: int = carried_by_one, tried: list[int] = tried) -> bool:
                tried.append(clients)
                return clients <= most

            each, enough = users_per_server(carried, users), -(-users // carried_by_one)
            servers, near = -(-users // each), -(-users // one_fewer(users, each)) <= NEAR_ENOUGH * each
            assert servers == enough or (near and servers - 1 == enough), (users, carried_by_one)
            if (users, carried_by_one) == (3000, 797):
                most_calls = len(tried)
    assert 0 < most_calls <= 7


@pytest.mark.parametrize(
    ("hardware", "load"),
    [("h200x8", {"concurrency": 16}), ("b300x8", {"request_rate": 0.5, "isl": 20_000, "osl": 500, "mtp": False})],
)
def test_the_wait_for_the_first_token_makes_nobody_faster(hardware: str, load: dict[str, Any]) -> None:
    """Both speeds are means over requests of the time per token: short waits of some outweigh no others."""
    for candidate in asked(hardware, **load).found.candidates:
        prediction = candidate.prediction
        assert prediction.queue_grows or prediction.user_tok_s_with_wait < prediction.user_tok_s
