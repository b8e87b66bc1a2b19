"""Fleets of copies: never worse than copies of a smaller answer, and said in full."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.files import encode_json
from models.architecture import deepseek_r1
from models.machine import machine_of
from models.serving.estimate import predict
from models.serving.fleet_replay import Limit
from models.workload import Slo
from planner.check.judge import check_arguments
from planner.fleets.deployment import Deployment, Pool, Role
from planner.fleets.disaggregated import FleetQuestion, disaggregated, role_sizes
from planner.fleets.make_fleet import plan_fleet, splits
from planner.fleets.plan_document import plan_document
from planner.fleets.split_replay import LIMITS
from planner.launch_lines.read import launches_of_file
from planner.plans.capacity import carries
from planner.plans.make import Plan, PlanQuestion, make_plan
from planner.sglang.arguments import read_arguments

Sgtune = Callable[..., Any]
WEIGHT_GIB = 640.0


def question(hardware: str, isl: int = 1000, osl: int = 500, **load: Any) -> PlanQuestion:
    return PlanQuestion(
        hardware=hardware_from_catalogue(hardware), arch=deepseek_r1(), version=Version("0.5.23"), isl=isl, osl=osl,
        **load,
    )  # fmt: skip


def total(plan: Plan) -> float:
    assert plan.best is not None
    return plan.best.output_tok_s


@pytest.mark.parametrize(
    ("nodes", "isl", "osl", "clients"), [(2, 1000, 500, 512), (4, 8000, 500, 64), (3, 200, 200, 7)]
)
def test_a_fleet_is_never_worse_than_copies_of_one_node(nodes: int, isl: int, osl: int, clients: int) -> None:
    fleet = plan_fleet(question(f"{nodes}xh200x8", isl, osl, concurrency=clients), "mixed")
    copies = min(nodes, clients)
    each = -(-clients // copies)
    one = make_plan(question("h200x8", isl, osl, concurrency=each))
    assert total(fleet) >= copies * total(one) * clients / (copies * each) * (1 - 1e-9)
    whole = make_plan(question(f"{nodes}xh200x8", isl, osl, concurrency=clients))
    assert total(fleet) >= total(whole) * (1 - 1e-9)


def test_more_nodes_never_give_less() -> None:
    rates = [total(plan_fleet(question(f"{nodes}xh200x8", concurrency=256))) for nodes in (1, 2, 4)]
    assert rates == sorted(rates)


def test_one_machine_is_planned_as_before() -> None:
    fleet, one = plan_fleet(question("h200x8", concurrency=64)), make_plan(question("h200x8", concurrency=64))
    assert fleet.best is not None
    assert one.best is not None
    assert fleet.best.config == one.best.config
    assert fleet.replicas == 1


def test_a_model_that_needs_two_nodes_is_copied_in_pairs() -> None:
    fleet = plan_fleet(question("4xh100x8", concurrency=128), "mixed")
    assert fleet.best is not None
    assert fleet.best.config.nnodes == 2
    assert fleet.best.servers == 2
    assert fleet.nodes == 4


def test_servers_smaller_than_a_node_are_tried_where_the_weights_fit() -> None:
    sizes = {part.copies: len(part.hardware.gpus) for part in splits(hardware_from_catalogue("b200x8"), WEIGHT_GIB)}
    assert sizes == {1: 8, 2: 4}
    assert [part.copies for part in splits(hardware_from_catalogue("h200x8"), WEIGHT_GIB)] == [1]


def test_a_rate_is_shared_by_the_copies() -> None:
    one = make_plan(question("h200x8", request_rate=2.0))
    fleet = plan_fleet(question("2xh200x8", request_rate=4.0), "mixed")
    assert fleet.meets_target
    assert fleet.best is not None
    assert one.best is not None
    assert fleet.best.prediction.e2e_ms["mean"] <= one.best.prediction.e2e_ms["mean"] * 1.001
    assert total(fleet) == pytest.approx(4.0 * 500, rel=0.1)


def test_users_get_the_fewest_gpus_that_keep_the_promise() -> None:
    fleet = plan_fleet(question("2xh200x8", 1000, 1000, users=1500, min_user_tok_s=20.0))
    assert fleet.meets_target
    assert fleet.best is not None
    assert fleet.replicas * fleet.concurrency >= 1500
    assert fleet.nodes == fleet.replicas * fleet.best.config.nnodes


@pytest.mark.parametrize(("isl", "osl", "users", "tok_s"), [(8000, 1000, 400, 20.0), (4000, 1000, 3000, 10.0)])
def test_users_get_no_server_more_for_memory_that_is_kept_free(isl: int, osl: int, users: int, tok_s: float) -> None:
    """A configuration that lets some wait in line is faster in closed form; the one that holds all of them decides."""
    asked = question("h200x8", isl, osl, users=users, min_user_tok_s=tok_s)
    plan = plan_fleet(asked, "mixed")
    assert plan.best is not None
    assert plan.meets_target
    assert carries(plan.best, plan.concurrency)
    context, clients = asked.context(), -(-users // (plan.replicas - 1))
    roomy = replace(plan.best.config, max_running_requests=clients + clients % 8)
    held = [
        predict(context, replace(roomy, mem_fraction_static=fraction), asked.workload(clients))
        for fraction in (0.80, 0.84, 0.88)
    ]
    assert all(one.user_tok_s < tok_s or one.running_requests < 0.98 * clients for one in held)


def test_users_with_long_prompts_are_planned_with_prefill_and_decode_apart_too() -> None:
    """Copies stall for every prompt: apart no more GPUs give everyone the speed, and each GPU more tokens."""
    asked = question("h200x8", 8000, 1000, users=400, min_user_tok_s=20.0)
    any_kind, copies = plan_fleet(asked), plan_fleet(asked, "mixed")
    assert any_kind.best is not None
    assert copies.best is not None
    assert any_kind.best.prefill is not None
    assert any_kind.meets_target
    assert any_kind.best.prediction.user_tok_s >= 20.0
    assert any_kind.best.gpus <= copies.best.gpus == copies.nodes * 8
    assert total(any_kind) / any_kind.best.gpus > total(copies) / copies.best.gpus


def test_decode_servers_may_span_several_machines_of_the_prefill_servers() -> None:
    """Racks of trays decode best with wide EP; each role has whole machines, and all of them are used once."""
    best = plan_fleet(question("8xgb200x4", 1000, 1000, concurrency=2048), "pd").best
    assert best is not None
    assert best.prefill is not None
    assert best.config.gpu_count > best.prefill.config.gpu_count
    assert best.gpus <= 32
    assert best.prefill.servers * best.prefill.config.gpu_count + best.servers * best.config.gpu_count == best.gpus


def test_a_smaller_fleet_than_the_answer_would_leave_users_waiting() -> None:
    asked = question("h200x8", 8000, 1000, users=400, min_user_tok_s=20.0)
    best = plan_fleet(asked, "pd").best
    assert best is not None
    smaller = disaggregated(
        role_sizes(asked.context(), best.gpus // 8 - 1),
        FleetQuestion(workload=asked.workload(400), slos=asked.all_slos, mtp=True),
    )
    assert all(each.misses or each.prediction.limiting != LIMITS[Limit.DECODE] for each in smaller)


def test_a_limit_is_kept_by_the_whole_fleet_before_it_is_fast() -> None:
    limit = Slo.parse("tpot:mean<20ms")
    fleet = plan_fleet(question("4xh200x8", 1000, 1000, concurrency=256, slos=(limit,)), "mixed")
    assert fleet.meets_target
    assert fleet.best is not None
    assert fleet.best.prediction.tpot_ms["mean"] <= 20.0


def test_the_document_names_pools_router_and_gpus() -> None:
    document = plan_document(plan_fleet(question("2xh200x8", concurrency=256), "mixed"))
    answer, first = document["answer"], document["candidates"][0]
    deployment = first["deployment"]
    assert answer["deployment"] == deployment["name"] == first["label"]
    assert answer["servers"] == deployment["pools"][0]["servers"] == 2
    assert answer["prefill_share"] == 0.0
    assert deployment["gpus"] == 16
    assert deployment["pools"][0]["gpus_per_server"] == 8
    assert deployment["pools"][0]["argv"] == first["argv"]
    assert deployment["router"]["argv"][:3] == ["python3", "-m", "sglang_router.launch_router"]
    assert answer["output_tok_s"] == pytest.approx(2 * first["prediction"]["output_tok_s"])


def test_names_and_routers_of_deployments() -> None:
    config = make_plan(question("h200x8", concurrency=8)).found.candidates[0].config
    one = Deployment(pools=(Pool(role=Role.MIXED, servers=1, config=config),))
    assert one.name == config.label
    assert one.router_argv is None
    apart = Deployment(
        pools=(
            Pool(role=Role.PREFILL, servers=1, config=config), Pool(role=Role.DECODE, servers=3, config=config),
        )
    )  # fmt: skip
    assert apart.name == f"1P {config.label} + 3D {config.label}"
    assert apart.prefill_share == 0.25
    command = apart.router_argv or []
    assert command.count("--prefill") == 1
    assert command.count("--decode") == 3
    assert "--pd-disaggregation" in command


def test_the_command_line_says_how_many_servers_and_what_each_gives(sgtune: Sgtune) -> None:
    load = ("--isl", "1000", "--osl", "500", "--concurrency", "256", "--servers", "mixed")
    ran = sgtune("plan", "--hardware", "2xh200x8", *load)
    assert ran.code == 0
    assert "2 x TP8" in ran.out
    assert "on 2 nodes" in ran.out
    assert "per server" in ran.out
    assert "sglang_router.launch_router" in ran.out
    assert json.loads(sgtune("plan", "--hardware", "2xh200x8", *load, "--json").out)["answer"]["servers"] == 2


@pytest.fixture(scope="module")
def apart() -> Plan:
    return plan_fleet(question("4xh200x8", 8000, 500, concurrency=128), "pd")


def test_prefill_and_decode_apart_are_planned_at_every_ratio(apart: Plan) -> None:
    document = plan_document(apart)
    for candidate in document["candidates"]:
        roles = {pool["role"]: pool for pool in candidate["deployment"]["pools"]}
        assert set(roles) == {"prefill", "decode"}
        assert sum(pool["servers"] * pool["gpus_per_server"] for pool in roles.values()) == 32, "every GPU, once"
        assert candidate["argv"] == roles["prefill"]["argv"]
        for role, pool in roles.items():
            assert pool["argv"][pool["argv"].index("--disaggregation-mode") + 1] == role
        assert "--pd-disaggregation" in candidate["deployment"]["router"]["argv"]
    answer = document["answer"]
    assert answer["servers"] == 4
    assert 0.0 < answer["prefill_share"] < 1.0
    assert answer["nodes"] == 4


def test_the_same_fleet_is_among_all_deployments_and_never_above_a_better_one(apart: Plan) -> None:
    both = plan_fleet(question("4xh200x8", 8000, 500, concurrency=128))
    assert any(candidate.prefill is not None for candidate in both.found.candidates), "whether P/D pays is always said"
    mixed = plan_fleet(question("4xh200x8", 8000, 500, concurrency=128), "mixed")
    assert total(both) == pytest.approx(max(total(apart), total(mixed)))


def test_a_prefill_decode_plan_is_exported_per_role_and_read_back(sgtune: Sgtune, apart: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(encode_json(plan_document(apart)))
    written = tmp_path / "fleet"
    ran = sgtune("export", "--plan", str(tmp_path / "plan.json"), "--bundle", str(written))
    assert ran.code == 0, ran.err
    assert {"prefill.sh", "decode.sh", "router.sh", "compose.yaml", "kubernetes.yaml", "slurm.sh", "README.md"} <= {
        path.name for path in written.iterdir()
    }
    document = json.loads(sgtune("check", "--hardware", "h200x8", "--json", str(written)).out)
    assert [server["role"] for server in document["servers"]] == ["prefill", "decode"]
    assert document["fleet"]["violations"] == []
    refused = sgtune("export", "--plan", str(tmp_path / "plan.json"), "--target", "systemd", "--out", str(written))
    assert refused.code == 2
    assert "a fleet is written as bash, compose, k8s, slurm" in refused.err


@pytest.mark.parametrize("version", ["0.5.3", "0.5.23"])
def test_every_server_of_a_prefill_decode_plan_is_one_its_release_starts(version: str) -> None:
    """SGLang 0.5.2 to 0.5.7 refuses decode servers of several DP ranks without --prefill-round-robin-balance."""
    asked = replace(question("2xh200x8", 4000, 500, concurrency=256), version=Version(version))
    plan = plan_fleet(asked, "pd")
    deployments = [each["deployment"] for each in plan_document(plan)["candidates"]]
    lines = [pool["argv"] for each in deployments for pool in each["pools"]]
    assert any("--disaggregation-mode decode" in " ".join(line) and "dp-size" in " ".join(line) for line in lines)
    machine = machine_of(hardware_from_catalogue("h200x8"))
    for line in lines:
        checked = check_arguments(["--model-path", "r1", *line], deepseek_r1(), machine, Version(version))
        assert checked.accepted, (line, checked.violations)


def test_a_node_of_large_gpus_is_shared_by_a_prefill_and_a_decode_server(sgtune: Sgtune, tmp_path: Path) -> None:
    alone = question("b200x8", 8000, 500, concurrency=32)
    plan = plan_fleet(alone, "pd")
    assert plan.best is not None
    assert plan.nodes == 1
    document = plan_document(plan)
    pools = document["candidates"][0]["deployment"]["pools"]
    assert sum(pool["servers"] * pool["gpus_per_server"] for pool in pools) == 8
    both = plan_fleet(alone)
    assert all(candidate.prefill is None for candidate in both.found.candidates), "only where it is asked for"
    shown = sgtune(
        "plan", "--hardware", "b200x8", "--isl", "8000", "--osl", "500", "--concurrency", "32", "--servers", "pd"
    )
    assert "--base-gpu-id 4" in shown.out
    (tmp_path / "plan.json").write_text(encode_json(document))
    ran = sgtune("export", "--plan", str(tmp_path / "plan.json"), "--bundle", str(tmp_path / "fleet"))
    assert ran.code == 0, ran.err
    lines = launches_of_file(tmp_path / "fleet" / "compose.yaml")
    values = [read_arguments(line.words, plan.context.version).values for line in lines]
    first_gpus = [each.get("base_gpu_id", 0) for each in values]
    ports = [each["port"] for each in values]
    assert sorted(first_gpus) == [0, 4]
    assert len(set(ports)) == 2


def test_a_fleet_without_two_nodes_is_refused_with_the_reason(sgtune: Sgtune) -> None:
    asked = ("--hardware", "h200x8", "--isl", "500", "--osl", "500", "--concurrency", "8", "--servers", "pd")
    ran = sgtune("plan", *asked)
    assert ran.code == 2
    assert "needs at least two nodes" in ran.err
    users = ("--hardware", "h200x8", "--isl", "500", "--osl", "500", "--users", "8", "--min-user-tok-s", "10")
    ran = sgtune("plan", *users, "--servers", "pd")
    assert ran.code == 2
    assert "these users need one server" in ran.err


@pytest.mark.slow
def test_sixteen_nodes_are_planned_in_seconds() -> None:
    """All ratios and layouts of 128 GPUs: 2 s of a core where nothing else runs."""
    began = time.process_time()
    assert total(plan_fleet(question("16xh200x8", 8000, 1000, concurrency=2048))) > 0.0
    assert time.process_time() - began < 8.0
