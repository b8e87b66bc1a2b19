"""Prefill/decode fleets for --users: the fewest servers that give every user the speed asked for."""

from __future__ import annotations

from dataclasses import replace

from models.serving.estimate import Context
from models.serving.fleet_replay import Limit
from models.workload import Slo, Workload
from planner.fleets.disaggregated import LIMITS, disaggregated, role_sizes
from planner.plans.candidates import Candidate


def fleets_for_users(
    context: Context, workload: Workload, slos: tuple[Slo, ...], most: int, *, mtp: bool
) -> list[Candidate]:
    """Return the prefill/decode fleets of the fewest servers that carry all users, or those of `most` servers.

    `workload.concurrency` is the number of users, `slos` hold the speed they are promised. A fleet that carries comes
    first; where none does, each candidate says what it misses.
    """

    def best_first(servers: int) -> list[Candidate]:
        candidates = disaggregated(role_sizes(context, servers), workload, slos, mtp=mtp)
        return sorted((_judged(candidate) for candidate in candidates), key=lambda c: bool(c.misses))

    fleets = best_first(most) if most > 1 else []
    too_few, enough = 1, most
    while carries(fleets) and enough - too_few > 1:
        middle = (too_few + enough) // 2
        smaller = best_first(middle)
        if carries(smaller):
            enough, fleets = middle, smaller
        else:
            too_few = middle
    return fleets


def carries(fleets: list[Candidate]) -> bool:
    """Say whether the first fleet gives every user what was promised."""
    return bool(fleets) and not fleets[0].misses


def _judged(candidate: Candidate) -> Candidate:
    """Return the candidate with a miss where users wait long before decode: they are not served at once."""
    limit = candidate.prediction.limiting
    if limit == LIMITS[Limit.DECODE]:
        return candidate
    return replace(candidate, misses=(*candidate.misses, f"users wait for {limit}"))
