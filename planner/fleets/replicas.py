"""k copies of one server: every size of server that divides the machine, planned with its share of the load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwprobe.profile import HardwareProfile
from models.machine import machine_of
from planner.plans.make import Plan, PlanQuestion, make_plan
from planner.plans.search import Candidate, Found, final_key, with_reasons

GIB = 2**30
# A server spans these many nodes at most: beyond it every published run loses to copies.
MOST_NODES_PER_SERVER = 8
MOST_CANDIDATES = 10


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


def plan_replicas(question: PlanQuestion) -> Plan:
    """Plan k copies of servers of every size; the best of all sizes first. Raises InputError for bad input.

    One server over the whole machine is one of the sizes, so the answer is never worse than `make_plan`'s.
    """
    question.checked()
    weight_gib = question.arch.total_params * question.arch.gemm_weight_bytes / GIB
    plans = [
        _plan_split(question, split, machine_of(question.hardware).gpus_per_node)
        for split in splits(question.hardware, weight_gib)
    ]
    whole = next(plan for plan in plans if plan.context.machine.gpu_count == machine_of(question.hardware).gpu_count)
    ranked = sorted(
        ((_key(plan, candidate), plan, candidate) for plan in plans for candidate in plan.found.candidates),
        key=lambda item: item[0],
    )
    if not ranked:
        return whole
    _, best, _ = ranked[0]
    candidates = with_reasons([candidate for _, _, candidate in ranked[:MOST_CANDIDATES]])
    found = Found(
        candidates=tuple(candidates),
        rejected=tuple(item for plan in plans for item in plan.found.rejected),
        evaluated=sum(plan.found.evaluated for plan in plans),
    )
    return replace(best, question=question, context=whole.context, found=found, published=whole.published)


def _key(plan: Plan, candidate: Candidate) -> tuple[float, ...]:
    """Order deployments: fewest misses, then the whole's rate; for users the fewest GPUs that carry them all."""
    first, second = final_key(candidate.prediction, plan.load, plan.question.all_slos)
    if plan.question.users is not None:
        return (float(not plan.meets_target), first, float(candidate.gpus), second)
    return (first, second * (candidate.servers * candidate.load_share if plan.load.request_rate is None else 1.0))


def _plan_split(question: PlanQuestion, split: Split, gpus_per_node: int) -> Plan:
    """Plan one part of the machine with its share of clients or arrivals; users choose how many parts they need."""
    part = replace(question, hardware=split.hardware)
    if question.concurrency is not None:
        copies = min(split.copies, question.concurrency)
        clients = -(-question.concurrency // copies)
        plan = make_plan(replace(part, concurrency=clients))
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
