"""Prefill and decode servers on machines of their own: --prefill-hardware and --decode-hardware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwprobe.errors import InputError
from hwprobe.profile import HardwareProfile
from models.machine import machine_of
from planner.fleets.disaggregated import FleetQuestion, disaggregated
from planner.fleets.split_replay import Sides
from planner.plans.candidates import Candidate, with_reasons
from planner.plans.make import Plan, PlanQuestion, make_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleHardware:
    """The machine of each role: all nodes of the one prefill, all of the other decode."""

    prefill: HardwareProfile
    decode: HardwareProfile


def plan_roles(question: PlanQuestion, roles: RoleHardware) -> Plan:
    """Plan the servers of both machines together, each as many as its nodes hold.

    `question.hardware` is the decode machine. Raises InputError where one of them does not hold the model.
    """
    question.checked()
    if question.users is not None:
        raise InputError("roles on machines of their own serve --concurrency or --request-rate, not --users")
    prefill = _smallest(question, roles.prefill, "--prefill-hardware")
    decode = _smallest(question, roles.decode, "--decode-hardware")
    counts = tuple(
        machine_of(hardware).nodes // plan.context.machine.nodes
        for hardware, plan in ((roles.prefill, prefill), (roles.decode, decode))
    )
    sides = Sides(prefill=prefill.context, decode=decode.context, ratios=((counts[0], counts[1]),))
    clients = question.concurrency or decode.concurrency * counts[1]
    workload = replace(question.workload(clients), request_rate=question.request_rate)
    candidates = disaggregated([sides], FleetQuestion(workload=workload, slos=question.slos, mtp=question.mtp))
    if not candidates:
        raise InputError(f"SGLang {question.version} has no prefill/decode fleet for these machines")
    return replace(
        decode,
        question=question,
        found=replace(decode.found, candidates=tuple(with_reasons(list(_named(candidates, roles))))),
        replicas=1,
        nodes=machine_of(roles.prefill).nodes + machine_of(roles.decode).nodes,
        load=workload,
        meets_target=not candidates[0].misses,
        warnings=(
            f"prefill servers stand on {roles.prefill.name}, all else said is of {roles.decode.name}",
            *candidates[0].prediction.warnings,
            *decode.context.engine.warnings,
        ),
    )


def _named(candidates: list[Candidate], roles: RoleHardware) -> Iterator[Candidate]:
    for candidate in candidates:
        assert candidate.prefill is not None  # disaggregated makes no other
        yield replace(candidate, prefill=replace(candidate.prefill, hardware=roles.prefill.name))


def _smallest(question: PlanQuestion, hardware: HardwareProfile, option: str) -> Plan:
    """Return the plan of the fewest nodes that hold the model; its context is a server's of the role."""
    nodes = machine_of(hardware).nodes
    for part in (part for part in range(1, nodes + 1) if nodes % part == 0):
        smallest_question = replace(
            question, hardware=replace(hardware, nodes=part), request_rate=None, concurrency=1, slos=()
        )
        plan = make_plan(smallest_question, families=1)
        if plan.found.candidates:
            return plan
    raise InputError(f"{option} {hardware.name} does not hold {question.arch.name}")
