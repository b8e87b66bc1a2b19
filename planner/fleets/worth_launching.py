"""The deployments of a machine that a tuner may launch: copies of every family, and prefill/decode at every ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from models.config import ServerConfig
from models.costs.memory import GOOD_FREE_GIB
from models.layout import table_of
from models.machine import machine_of
from models.serving.estimate import Context
from models.workload import Workload
from planner.fleets.deployed import server_context
from planner.fleets.deployment import Deployment, Pool, Role
from planner.fleets.disaggregated import (
    Finalists,
    FleetQuestion,
    can_disaggregate,
    disaggregated,
    role_sizes,
)
from planner.fleets.make_fleet import ANY, MIXED, PD, part_of, plan_fleet, sizes_of_a_node
from planner.fleets.plan_document import deployment_of
from planner.fleets.role_servers import PREFILL_CHUNKS, is_allowed, prefill_servers
from planner.fleets.split_replay import Sides
from planner.plans.candidates import Candidate
from planner.plans.make import PlanQuestion
from planner.plans.space import checkpoint_flags, graph_size, layouts

# Prefill/decode deployments replayed: the best of so many ratios, and so many decode layouts over all ratios.
RATIOS, LAYOUTS = 12, 16
# Shares of a decode server's requests that it may run at once instead: under a limit on TPOT fewer may be better.
CAPS = (0.75, 0.5)


def worth_launching(question: PlanQuestion, servers: str = ANY) -> list[Deployment]:
    """Return the deployments of the whole machine that the closed forms put ahead, copies first, best first.

    The question has a number of clients. Raises InputError where nothing fits.
    """
    copies = plan_fleet(question, MIXED).found.candidates
    listed = [] if servers == PD else [deployment_of(candidate) for candidate in copies]
    listed += [] if servers == MIXED else [deployment_of(candidate) for candidate in _apart(question)]
    return list(dict.fromkeys(listed))


def best_copies(question: PlanQuestion, launchable: Callable[[Deployment], bool]) -> Deployment | None:
    """Return the best copies of one server that can be launched, the baseline of every claim; None without any.

    Where one server over the whole machine is better than copies of a smaller one it is that server.
    """
    copies = (deployment_of(candidate) for candidate in plan_fleet(question, MIXED).found.candidates)
    return next((deployment for deployment in copies if launchable(deployment)), None)


def _apart(question: PlanQuestion) -> list[Candidate]:
    """Return prefill/decode fleets of the smallest servers that hold the model: by ratio, then by decode layout."""
    sides = _smallest_sides(question)
    if not sides:
        return []
    apart = FleetQuestion(workload=_workload(question), slos=question.slos, mtp=question.mtp)
    by_ratio = disaggregated(sides, apart, Finalists(most=RATIOS))
    return by_ratio + disaggregated(sides, apart, Finalists(most=LAYOUTS, by_layout=True))


def splits_in_two(question: PlanQuestion) -> bool:
    """Say whether the machine holds a prefill and a decode server at once."""
    return bool(_smallest_sides(question))


def _smallest_sides(question: PlanQuestion) -> list[Sides]:
    """Return the ratios of the smallest servers that hold the model: of whole nodes, or of parts of a single one."""
    hardware, workload = question.hardware, _workload(question)
    nodes = machine_of(hardware).nodes
    for part in (part for part in range(1, nodes) if nodes % part == 0):
        context = replace(question, hardware=replace(hardware, nodes=part)).context()
        if can_disaggregate(context) and _holds_model(context, workload):
            return role_sizes(context, nodes // part)
    gpus = hardware.gpus_per_node
    for part in (part for part in range(1, gpus) if gpus % part == 0 and nodes == 1):
        context = part_of(question, part)
        if can_disaggregate(context) and _holds_model(context, workload):
            return list(sizes_of_a_node(question, part))
    return []


def _workload(question: PlanQuestion) -> Workload:
    return question.workload(question.concurrency or 1)


def _holds_model(context: Context, workload: Workload) -> bool:
    shapes = list(layouts(context.machine, context.version, checkpoint_flags(context.arch, context.version)))
    return bool(prefill_servers(context, shapes, workload, (0,)))


def nearby(deployment: Deployment, question: PlanQuestion) -> Iterator[Deployment]:
    """Yield a prefill/decode deployment with another chunk on its prefill servers, or another cap on decode."""
    if deployment.pools[-1].role is Role.MIXED:
        return
    prefill, decode = deployment.pools
    for chunk in PREFILL_CHUNKS:
        if chunk != prefill.config.chunked_prefill_size:
            yield from _with(deployment, question, prefill, replace(prefill.config, chunked_prefill_size=chunk))
    for share in CAPS:
        ranks = decode.config.attn_dp_size
        per_rank = max(1, round(share * (decode.config.max_running_requests or 1) / ranks))
        capped = replace(
            decode.config, max_running_requests=per_rank * ranks, cuda_graph_max_bs_decode=graph_size(per_rank)
        )
        yield from _with(deployment, question, decode, capped)


def _with(deployment: Deployment, question: PlanQuestion, pool: Pool, config: ServerConfig) -> Iterator[Deployment]:
    """Yield the deployment with another configuration in one pool, if SGLang would start it and it fits."""
    context = server_context(question, config)
    filled = context.memory(table_of([config]))
    fits = float(filled.free[0]) >= GOOD_FREE_GIB and float(filled.kv_tokens_per_rank[0]) > 0
    if fits and is_allowed(context, config):
        pools = tuple(replace(p, config=config) if p is pool else p for p in deployment.pools)
        yield replace(deployment, pools=pools)
