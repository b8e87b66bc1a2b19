"""Fleets of a plan as its page looks at them: kinds of deployments, their curves, and where requests wait."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from models.serving.fleet_replay import Limit, transfer_of
from planner.fleets.deployed import candidate_of, play_deployment, server_context
from planner.fleets.make_fleet import GLANCED, MOST_NODES_PER_SERVER
from planner.fleets.plan_document import deployment_of
from planner.plans.candidates import Candidate
from planner.plans.frontier import pareto_front
from planner.plans.make import Plan, make_plan

# Loads at which a deployment's curve is drawn, as shares of the one asked for.
SHARES = (1 / 16, 1 / 4, 1 / 2)


class DeploymentKind(StrEnum):
    """What a deployment is: one server over all its GPUs, copies of a server, or prefill and decode apart."""

    ONE = "one server"
    COPIES = "copies behind a router"
    APART = "prefill and decode apart"


STAGES = {
    Limit.PREFILL: "prefill, and waiting for it", Limit.TRANSFER: "KV transfer", Limit.CAP: "waiting for a slot",
    Limit.KV: "waiting for KV cache", Limit.DECODE: "decode",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCurve:
    """One deployment from few clients up to those asked for, all of them together; the last point is the plan's."""

    name: str
    kind: DeploymentKind
    clients: tuple[int, ...]
    tok_s_per_gpu: tuple[float, ...]
    user_tok_s: tuple[float, ...]


def kind_of(candidate: Candidate) -> DeploymentKind:
    """Return what a candidate is."""
    if candidate.prefill is not None:
        return DeploymentKind.APART
    return DeploymentKind.ONE if candidate.servers == 1 else DeploymentKind.COPIES


def is_fleet(plan: Plan) -> bool:
    """Say whether a plan speaks of several servers, or of several machines."""
    return plan.question.hardware.nodes > 1 or any(kind_of(c) is not DeploymentKind.ONE for c in plan.found.candidates)


def clients_of(plan: Plan) -> int:
    """Return the requests in flight over all servers."""
    question = plan.question
    return question.concurrency or question.users or max(1, plan.concurrency * plan.replicas)


def one_large_server(plan: Plan) -> Candidate | None:
    """Return the best server over all GPUs where the plan lists none: what copies and roles are held against."""
    question = plan.question
    listed = any(kind_of(candidate) is DeploymentKind.ONE for candidate in plan.found.candidates)
    if listed or question.users is not None or not 1 < question.hardware.nodes <= MOST_NODES_PER_SERVER:
        return None
    return make_plan(question, GLANCED).best


def running_in_all(candidate: Candidate) -> float:
    """Return the requests that run at once on all servers."""
    return candidate.prediction.running_requests * candidate.servers * candidate.load_share


def fleet_curves(plan: Plan) -> list[FleetCurve]:
    """Return the curve of every candidate, and of one server over all GPUs.

    At fewer clients each is played again, router, transfer and all.
    """
    most = clients_of(plan)
    clients = sorted({max(1, round(most * share)) for share in SHARES} - {most})
    context_of = partial(server_context, plan.question)
    curves = []
    large = one_large_server(plan)
    for candidate in (*plan.found.candidates, *([large] if large else [])):
        deployment = deployment_of(candidate)
        loads = [plan.question.workload(count) for count in clients]
        played = [candidate_of(deployment, context_of, load, ()) for load in loads]
        points = [*played, candidate]
        curves.append(
            FleetCurve(
                name=candidate.name,
                kind=kind_of(candidate),
                clients=(*clients, most),
                tok_s_per_gpu=tuple(point.output_tok_s / point.gpus for point in points),
                user_tok_s=tuple(point.prediction.user_tok_s for point in points),
            )
        )
    return curves


def frontier(curves: list[FleetCurve]) -> list[tuple[float, float]]:
    """Return (tok/s per user, tok/s per GPU) of the points of all curves that no other beats, by speed."""
    points = [point for curve in curves for point in zip(curve.tok_s_per_gpu, curve.user_tok_s, strict=True)]
    return sorted((points[index][1], points[index][0]) for index in pareto_front(points))


def stages(plan: Plan, candidate: Candidate) -> dict[str, float]:
    """Return the mean seconds of a request's life in a deployment under the load asked for, stage by stage.

    Where more is sent than answered nothing before decode has a steady value: then that is all there is.
    """
    prediction = candidate.prediction
    if prediction.queue_grows:
        return {STAGES[Limit.DECODE]: prediction.tpot_ms["mean"] / 1e3 * plan.load.osl.mean}
    if candidate.prefill is None:
        ttft_s, e2e_s = prediction.ttft_ms["mean"] / 1e3, prediction.e2e_ms["mean"] / 1e3
        return {STAGES[Limit.PREFILL]: ttft_s, STAGES[Limit.DECODE]: e2e_s - ttft_s}
    deployment, context_of = deployment_of(candidate), partial(server_context, plan.question)
    transfer = transfer_of(context_of(deployment.pools[-1].config))
    played = play_deployment(deployment, context_of, plan.question.workload(clients_of(plan)), transfer)
    decode_s = float((played.seen.e2e_s - played.seen.ttft_s).mean())
    return {**{STAGES[limit]: seconds for limit, seconds in played.waits_s.items()}, STAGES[Limit.DECODE]: decode_s}
