"""The most clients a server carries within its objectives: doubling, then bisection, on one running server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.workload import Slo, missed
from tuner.bench.point import MeasuredPoint
from tuner.seam import Verdict

# The answer is exact to this share: finer than what a repeat of the measurement would tell apart.
RESOLUTION = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """`best` clients kept every objective, `broken` did not (None: none was found up to the limit)."""

    best: int | None
    broken: int | None
    misses: tuple[str, ...]


def find_knee(measure: Callable[[int], MeasuredPoint], slos: tuple[Slo, ...], first: int, most: int) -> Knee:
    """Search concurrencies from `first` up to `most`. A point that is not `ok` counts as broken and says why."""
    good: int | None = None
    bad: int | None = None
    misses: tuple[str, ...] = ()
    clients = max(1, first)
    while True:
        misses_here = _misses(measure(clients), slos)
        if misses_here:
            bad, misses = clients, misses_here
        else:
            good = clients
        if bad is None:
            if clients >= most:
                return Knee(best=good, broken=None, misses=())
            clients = min(most, clients * 2)
        elif good is None:
            if bad == 1:
                return Knee(best=None, broken=1, misses=misses)
            clients = max(1, bad // 2)
        elif bad - good <= max(1, int(RESOLUTION * bad)):
            return Knee(best=good, broken=bad, misses=misses)
        else:
            clients = (good + bad) // 2


def _misses(point: MeasuredPoint, slos: tuple[Slo, ...]) -> tuple[str, ...]:
    if point.verdict is not Verdict.OK:
        return (f"{point.verdict}: {point.why}",)
    return missed(slos, point.measurement())
