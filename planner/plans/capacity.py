"""Capacity: how many clients a rate needs, and how many users one server carries at a speed."""

from __future__ import annotations

from collections.abc import Callable

from models.workload import ALL_AT_ONCE
from planner.plans.candidates import Candidate, Found

# No single R1 server of today runs more requests at once than this.
MOST_CLIENTS = 4096
# So many more users a server than bisected are tried in the whole space.
NEAR_ENOUGH = 1.05


def concurrency_for_rate(search_at: Callable[[int], Found], request_rate: float) -> tuple[int, bool]:
    """Return the fewest clients in flight that give `request_rate` requests per second, and whether any do.

    By Little's law a server that completes R requests per second at latency L holds R x L of them; the
    closed loop's rate rises with the clients, so the smallest sufficient number is found by bisection.
    """

    def reaches(clients: int) -> bool:
        result = search_at(clients)
        return bool(result.candidates) and max(c.prediction.request_rate for c in result.candidates) >= request_rate

    return _smallest(reaches, MOST_CLIENTS)


def carries(candidate: Candidate, clients: int) -> bool:
    """Say whether a candidate serves so many at once within every limit."""
    return candidate.prediction.running_requests >= ALL_AT_ONCE * clients and not candidate.misses


def users_per_server(carried: Callable[[int], bool], users: int) -> int:
    """Return how many of `users` one server carries at once, where `carried` says so of a number (0: not even one).

    It is bisected until it is known to about 3 %, or until the number of servers hangs on it no longer.
    """
    if not carried(1):
        return 0
    most = min(users, MOST_CLIENTS)
    if carried(most):
        return most
    low, high = 1, most
    while high - low > max(1, low // 32) and not _settled(users, low, high):
        middle = (low + high) // 2
        low, high = (middle, high) if carried(middle) else (low, middle)
    return low


def _settled(users: int, low: int, high: int) -> bool:
    """Say whether one server fewer than `low` users each need would get more than `high` of them, by far."""
    return -(-users // one_fewer(users, low)) > NEAR_ENOUGH * high


def one_fewer(users: int, each: int) -> int:
    """Return one server fewer than `each` users a server need, at least one."""
    return max(1, -(-users // each) - 1)


def _smallest(holds: Callable[[int], bool], most: int) -> tuple[int, bool]:
    """Return the smallest clients for which a monotone predicate holds, to about 3 %, and whether one does."""
    high = 1
    while not holds(high):
        if high >= most:
            return most, False
        high = min(most, high * 2)
    low = high // 2
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high, True
