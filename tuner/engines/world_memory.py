"""What memory beyond the ledger does to a launch in a world: the same truth for both engines that have worlds."""

from __future__ import annotations

from models.costs.memory import Memory
from tuner.engines.world import World
from tuner.seam import FailureKind

# How far the boot is when the error shows: capture comes late.
OOM_BOOT_SHARE = {FailureKind.OOM_KV: 0.6, FailureKind.OOM_GRAPHS: 0.9}


def boot_failure(world: World, filled: Memory) -> FailureKind | None:
    """Return how the launch runs out of memory, if it does: extra memory eats the slack beside the KV pool.

    Activations come first under load, graphs are captured before.
    """
    if float(filled.kv_pool[0]) <= 0.0:
        return FailureKind.OOM_KV
    free = float(filled.free[0]) - world.extra_memory_gib
    return FailureKind.OOM_GRAPHS if free + float(filled.activations[0]) < 0.0 else None


def fails_under_load(world: World, filled: Memory) -> bool:
    """Say whether the activations of a full prefill do not fit beside what the world uses."""
    return float(filled.free[0]) < world.extra_memory_gib
