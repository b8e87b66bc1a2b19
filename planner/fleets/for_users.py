"""Prefill/decode fleets for --users: the fewest servers that give every user the speed asked for."""

from __future__ import annotations

from dataclasses import replace

from models.serving.estimate import Context
from models.serving.fleet_replay import WAITS_MATTER, Limit
from planner.fleets.disaggregated import FleetLeader, FleetQuestion, best_first, leaders, role_sizes
from planner.fleets.split_replay import LIMITS
from planner.plans.candidates import Candidate

# A closed form that waits so many times as long as a user may carries nobody in the replay either.
HOPELESS = 5.0


def fleets_for_users(context: Context, question: FleetQuestion, most: int) -> list[Candidate]:
    """Return the prefill/decode fleets of the fewest servers that carry all users, or those of `most` servers.

    The question's `concurrency` is the number of users, its limits hold the speed they are promised. A fleet that
    carries comes first; where none does, each candidate says what it misses.
    """

    def leading(servers: int) -> list[FleetLeader]:
        return leaders(role_sizes(context, servers), question)

    fleets = _judged([leader.replayed() for leader in leading(most)], question) if most > 1 else []
    too_few, enough = 1, most
    while carries(fleets) and enough - too_few > 1:
        middle = (too_few + enough) // 2
        smaller = _if_carrying(leading(middle), question)
        if smaller:
            enough, fleets = middle, smaller
        else:
            too_few = middle
    return fleets


def _if_carrying(leading: list[FleetLeader], question: FleetQuestion) -> list[Candidate]:
    """Return the fleets where one of them carries the users, else none: without a replay of those that cannot."""
    replayed = {number: leader.replayed() for number, leader in enumerate(leading) if _has_hope(leader)}
    if not carries(_judged(list(replayed.values()), question)):
        return []
    return _judged([replayed.get(number) or leader.replayed() for number, leader in enumerate(leading)], question)


def _has_hope(leader: FleetLeader) -> bool:
    return leader.before_decode <= HOPELESS * WAITS_MATTER


def carries(fleets: list[Candidate]) -> bool:
    """Say whether the first fleet gives every user what was promised."""
    return bool(fleets) and not fleets[0].misses


def _judged(candidates: list[Candidate], question: FleetQuestion) -> list[Candidate]:
    """Return the fleets, those that carry the users first."""
    return sorted(map(_with_wait, best_first(candidates, question)), key=lambda candidate: bool(candidate.misses))


def _with_wait(candidate: Candidate) -> Candidate:
    """Return the candidate with a miss where users wait long before decode: they are not served at once."""
    limit = candidate.prediction.limiting
    if limit == LIMITS[Limit.DECODE]:
        return candidate
    return replace(candidate, misses=(*candidate.misses, f"users wait for {limit}"))
