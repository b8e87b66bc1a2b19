"""Memory needed beyond the ledger, learned from launches that fitted and launches that ran out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.layout import Array, table_of
from models.serving.estimate import Context
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.seam import FailureKind

# GiB per GPU that may be missing, the spread of the ledger's error before any launch, and how sharp the edge is.
GRID_GIB = np.arange(-3.0, 20.0, 0.05)
PRIOR_GIB = 2.0
EDGE_GIB = 0.35
OOM = (FailureKind.OOM_WEIGHTS, FailureKind.OOM_KV, FailureKind.OOM_GRAPHS, FailureKind.OOM_LOAD)


def evidence(records: Sequence[TrialRecord], context: Context) -> list[tuple[float, bool]]:
    """Return, for each launch that is evidence about memory, GiB left free by the ledger and whether it fitted."""
    telling = [r for r in records if r.outcome is TrialOutcome.MEASURED or (r.launched and r.failure in OOM)]
    if not telling:
        return []
    filled = context.memory(table_of([record.config for record in telling]))
    slack = filled.free + np.array([_unused_activations(r) for r in telling]) * filled.activations
    return [(float(gib), record.outcome is TrialOutcome.MEASURED) for gib, record in zip(slack, telling, strict=True)]


def _unused_activations(record: TrialRecord) -> float:
    """A server that dies while it captures graphs has not yet allocated the activations of prefill."""
    return 1.0 if record.failure is FailureKind.OOM_GRAPHS else 0.0


def chance_it_holds(free_gib: Array, launches: Sequence[tuple[float, bool]]) -> Array:
    """Return the probability that each amount of free memory (GiB per GPU) suffices, given the launches.

    The offset is normal around the ledger beforehand; every launch bounds it from one side, softly.
    """
    weight = np.exp(-0.5 * np.square(GRID_GIB / PRIOR_GIB))
    for free, fitted in launches:
        weight = weight * np.maximum(_held(free - GRID_GIB) if fitted else 1.0 - _held(free - GRID_GIB), 1e-9)
    weight = weight / weight.sum()
    below = np.cumsum(weight)
    chance: Array = np.interp(free_gib - EDGE_GIB, GRID_GIB, below, left=0.0, right=1.0)
    return chance


def known_missing_gib(launches: Sequence[tuple[float, bool]]) -> float:
    """Return the GiB per GPU that a failed launch proves to be missing: a configuration with less free cannot fit."""
    return max((free for free, fitted in launches if not fitted), default=0.0)


def _held(margin: Array) -> Array:
    chance: Array = 1.0 / (1.0 + np.exp(-margin / (0.25 * EDGE_GIB)))
    return chance
