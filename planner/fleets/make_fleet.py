"""The best fleet: k copies of servers of every size that divides the machine, or prefill and decode apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.machine import machine_of
from models.serving.estimate import Context
from planner.fleets.disaggregated import DECODE_WIDTHS, FleetQuestion, disaggregated, fleet_key, role_sizes
from planner.fleets.for_users import fleets_for_users
from planner.fleets.split_replay import Sides
from planner.plans.candidates import Candidate, Found, with_reasons
from planner.plans.capacity import carries
from planner.plans.make import Plan, PlanQuestion, make_plan
from planner.plans.search import REPLAYED, final_key

GIB = 2**30
# A server spans these many nodes at most: beyond it every published run loses to copies.
MOST_NODES_PER_SERVER = 8
MOST_CANDIDATES = 10
# Families replayed of a cut that may be far behind, and the share of the best rate from which on all are.
GLANCED = 3
NEAR = 0.85
# What --servers takes: servers that do both phases, prefill and decode apart, or whichever is better.
ANY, MIXED, PD = "any", "mixed", "pd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The machine cut into `copies` equal parts, a server each: what one part is."""

    hardware: HardwareProfile
    copies: int


def splits(hardware: HardwareProfile, weight_gib: float) -> Iterator[Split]:
    """Yield every way to cut a machine into equal servers that could hold the weights: whole nodes, or parts of one."""
    machine = machine_of(hardware)
    for nodes in range(1, min(machine.nodes, MOST_NODES_PER_SERVER) + 1):
        if machine.nodes % nodes == 0:
            yield Split(hardware=hardware if nodes == machine.nodes else _of_nodes(hardware, nodes),
                        copies=machine.nodes // nodes)  # fmt: skip
    for gpus in range(1, machine.gpus_per_node):
        if machine.gpus_per_node % gpus == 0 and gpus * machine.memory_gib > weight_gib:
            part = replace(_of_nodes(hardware, 1), gpus=hardware.gpus[:gpus])
            yield Split(hardware=part, copies=machine.nodes * machine.gpus_per_node // gpus)


def _of_nodes(hardware: HardwareProfile, nodes: int) -> HardwareProfile:
    return replace(hardware, nodes=nodes)


def sizes_of_a_node(question: PlanQuestion, part: int) -> Iterator[Sides]:
    """Yield how a node's parts of so many GPUs may be shared: decode servers take one, two or four of them."""
    parts = question.hardware.gpus_per_node // part
    prefill = part_of(question, part)
    for width in DECODE_WIDTHS:
        ratios = tuple((parts - width * decode, decode) for decode in range(1, (parts - 1) // width + 1))
        if ratios:
            yield Sides(prefill=prefill, decode=part_of(question, part * width), ratios=ratios)


def part_of(question: PlanQuestion, gpus: int) -> Context:
    """Return what a server on so many GPUs of a node stands on."""
    return replace(question, hardware=replace(question.hardware, gpus=question.hardware.gpus[:gpus])).context()


def plan_fleet(question: PlanQuestion, servers: str = ANY) -> Plan:
    """Plan copies of servers of every size, and prefill/decode fleets; the best first. Raises InputError for bad input.

    One server over the whole machine is one of the sizes, so the answer is never worse than `make_plan`'s. For users
    at a speed it is the deployment of the fewest GPUs.
    """
    question.checked()
    weight_gib = question.arch.total_params * question.arch.gemm_weight_bytes / GIB
    machine = machine_of(question.hardware)
    plans = _plan_splits(question, list(splits(question.hardware, weight_gib)), machine.gpus_per_node)
    whole = max(plans, key=lambda plan: plan.context.machine.gpu_count)
    ranked = [(_key(plan, candidate), plan, candidate) for plan in plans for candidate in plan.found.candidates]
    # A node is shared by both roles where that is asked for: no published run says how that goes.
    shares = machine.nodes < 2 and question.users is None
    apart = [] if servers == MIXED or (shares and servers != PD) else _apart(question, plans, machine.nodes)
    if servers == PD:
        if not apart:
            raise InputError(_why_no_fleet(question, machine.nodes))
        ranked = []
    ranked = sorted([*ranked, *apart], key=lambda item: item[0])
    if not ranked:
        return whole
    _, best, leader = ranked[0]
    listed = ranked[:MOST_CANDIDATES]
    listed += [item for item in apart[:1] if item not in listed]  # whether prefill/decode pays is always answered
    search_result = Found(
        candidates=tuple(with_reasons([candidate for _, _, candidate in listed])),
        rejected=tuple(item for plan in plans for item in plan.found.rejected),
        evaluated=sum(plan.found.evaluated for plan in plans),
    )
    changed: dict[str, Any] = {}
    if leader.prefill is not None:
        changed = {"replicas": 1, "nodes": -(-leader.gpus // machine.gpus_per_node), "meets_target": not leader.misses}
    return replace(
        best, question=question, context=question.context(), found=search_result, published=whole.published, **changed
    )


def _apart(
    question: PlanQuestion, plans: Sequence[Plan], nodes: int
) -> list[tuple[tuple[float, ...], Plan, Candidate]]:
    """Return prefill/decode fleets of the smallest server that holds the model, best first.

    Of several nodes that is one of whole nodes, of a single one a part of it.
    """
    holding = [plan for plan in plans if plan.found.candidates and plan.context.machine.gpus_per_node >= 4]
    if question.users is None and nodes < 2:
        holding = [plan for plan in holding if plan.replicas > 1][-1:]
    if not holding:
        return []
    smallest = holding[0]
    if question.users is not None:
        return _apart_for_users(question, smallest)
    context = smallest.context
    if nodes < 2:
        sizes = list(sizes_of_a_node(question, context.machine.gpus_per_node))
    else:
        sizes = role_sizes(context, nodes // context.machine.nodes) if context.machine.nodes < nodes else []
    count = sum(sizes[0].ratios[0]) if sizes else 0
    clients = question.concurrency or smallest.concurrency * count
    workload = replace(question.workload(clients), request_rate=question.request_rate)
    apart = FleetQuestion(workload=workload, slos=question.slos, mtp=question.mtp)
    fleets = disaggregated(sizes, apart)
    rate = question.request_rate is not None
    return [((fleet_key(c, workload, question.slos), _second(c, rate=rate)), smallest, c) for c in fleets]


def _second(candidate: Candidate, *, rate: bool) -> float:
    """Order fleets that miss equally little: by latency where all have the same rate, else by what they give."""
    steady = rate and not candidate.prediction.queue_grows
    return candidate.prediction.e2e_ms["mean"] if steady else -candidate.output_tok_s


def _apart_for_users(question: PlanQuestion, copies: Plan) -> list[tuple[tuple[float, ...], Plan, Candidate]]:
    """Return prefill/decode fleets that carry the users with no more servers than `copies` of one server need."""
    workload = question.workload(question.users or 1)
    apart = FleetQuestion(workload=workload, slos=question.all_slos, mtp=question.mtp)
    fleets = fleets_for_users(copies.context, apart, copies.replicas)
    return [
        ((float(bool(c.misses)), fleet_key(c, workload, question.all_slos), float(c.gpus), -c.output_tok_s), copies, c)
        for c in fleets
    ]


def _why_no_fleet(question: PlanQuestion, nodes: int) -> str:
    if question.users is not None:
        return "--servers pd: these users need one server of this machine; prefill and decode apart need two"
    if nodes < 2:
        name = question.hardware.name
        return f"--servers pd needs at least two nodes: no half of --hardware {name} holds the model for this load"
    return f"--servers pd: no prefill/decode fleet of {question.hardware.name} holds the model on this release"


def _key(plan: Plan, candidate: Candidate) -> tuple[float, ...]:
    """Order deployments: fewest misses, then the whole's rate; for users the fewest GPUs that carry them all."""
    first, second = final_key(candidate.prediction, plan.load, plan.question.all_slos)
    if plan.question.users is not None:
        return (float(not carries(candidate, plan.concurrency)), first, float(candidate.gpus), -candidate.output_tok_s)
    rate = plan.load.request_rate is None or candidate.prediction.queue_grows  # the second is then what all give
    return (first, second * (candidate.servers * candidate.load_share if rate else 1.0))


def _plan_splits(question: PlanQuestion, parts: Sequence[Split], gpus_per_node: int) -> list[Plan]:
    """Plan every cut of the machine: all families of the smallest server, of larger ones where they come near it.

    Servers of many nodes hold many clients, and lose nearly always: the replay of their leaders says by how much.
    """
    if question.concurrency is None:
        return [_plan_split(question, part, gpus_per_node) for part in parts]
    plans: list[Plan] = []
    for part in parts:
        best_key = min((_key(plan, plan.best) for plan in plans if plan.best), default=None)
        plan = _plan_split(question, part, gpus_per_node, REPLAYED if best_key is None else GLANCED)
        if best_key is not None and plan.best is not None and _comes_near(_key(plan, plan.best), best_key):
            plan = _plan_split(question, part, gpus_per_node)
        plans.append(plan)
    return plans


def _comes_near(key: tuple[float, ...], best: tuple[float, ...]) -> bool:
    """Say whether other families of this cut might beat the best: they miss less, or the rate is not far off."""
    return key[:-1] < best[:-1] or (key[:-1] == best[:-1] and key[-1] <= NEAR * best[-1])


def _plan_split(question: PlanQuestion, split: Split, gpus_per_node: int, families: int = REPLAYED) -> Plan:
    """Plan one part of the machine with its share of clients or arrivals; users choose how many parts they need."""
    part = replace(question, hardware=split.hardware)
    if question.concurrency is not None:
        copies = min(split.copies, question.concurrency)
        clients = -(-question.concurrency // copies)
        plan = make_plan(replace(part, concurrency=clients), families)
        return _with_copies(plan, copies, gpus_per_node, question.concurrency / (copies * clients))
    if question.request_rate is not None:
        plan = make_plan(replace(part, request_rate=question.request_rate / split.copies))
        return _with_copies(plan, split.copies, gpus_per_node, 1.0)
    plan = make_plan(part)
    return _with_copies(plan, plan.replicas, gpus_per_node, 1.0)


def _with_copies(plan: Plan, copies: int, gpus_per_node: int, load_share: float) -> Plan:
    """Return the plan of one copy as that of all; where clients do not divide, the last copy has fewer."""
    machine = plan.context.machine
    servers_per_node = max(1, gpus_per_node // machine.gpu_count)
    candidates = tuple(replace(c, servers=copies, load_share=load_share) for c in plan.found.candidates)
    return replace(
        plan,
        replicas=copies,
        nodes=-(-copies * machine.nodes // servers_per_node),
        found=replace(plan.found, candidates=candidates),
    )
