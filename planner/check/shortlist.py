"""The changes of a launch that promise most tok/s under the limits, by the closed form: one for each set of levers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.config import ServerConfig
from models.costs.memory import GOOD_FREE_GIB, memory
from models.layout import Array, table_of
from models.serving.estimate import predict_many
from planner.check.changes import LARGEST_FRACTION, SMALLEST_FRACTION, Conditions
from planner.check.judge import Checked, Weighed, modelled
from planner.plans.search import closed_form_excess
from planner.sglang.resolver import resolve

# Rates closer than this are told apart by how many flags they take.
NEAR = 0.01


def shortlist(
    checked: Checked, weighed: Weighed, changes: Sequence[ServerConfig], conditions: Conditions
) -> list[ServerConfig]:
    """Return the best change of each set of levers, most tok/s under the limits first, memory fractions chosen.

    The rules have not judged them yet. Each is tried with the fraction it has and with the largest that leaves room.
    """
    context, workload = conditions.context, conditions.workload
    machine = context.machine.with_nodes(max(1, checked.resolved.config.nnodes))
    placed = replace(context, machine=machine)
    resolved = [modelled(resolve(change, context.arch, machine, context.version).config) for change in changes]
    fractions = _roomy_fractions(resolved, conditions)
    typed = [*changes, *(replace(c, mem_fraction_static=f) for c, f in zip(changes, fractions, strict=True))]
    configs = [*resolved, *(replace(c, mem_fraction_static=f) for c, f in zip(resolved, fractions, strict=True))]
    table = table_of(configs)
    filled = memory(placed.arch, machine, table, placed.version, conditions.free_before_load_gib)
    steady = predict_many(placed, table, workload, filled)
    safe_gib = min(GOOD_FREE_GIB - 0.01, weighed.ledger.free_gib)
    rows = np.flatnonzero((filled.free >= safe_gib) & (filled.kv_tokens_per_rank >= workload.longest_request))
    excess = np.maximum(0.0, closed_form_excess(steady, rows, workload, conditions.slos))
    leaders: dict[frozenset[str], tuple[tuple[float, float, int], int]] = {}
    for row, miss in zip(rows.tolist(), excess.tolist(), strict=True):
        key = (miss, rate_step(float(steady.output_tok_s[row])), _words_changed(checked.typed, typed[row]))
        changed = levers(checked.resolved.config, configs[row])
        if changed not in leaders or key < leaders[changed][0]:
            leaders[changed] = (key, row)
    return [typed[row] for _, row in sorted(leaders.values())]


def _roomy_fractions(resolved: Sequence[ServerConfig], conditions: Conditions) -> list[float]:
    """Return for each configuration the memory fraction, in hundredths, that leaves 5 GiB of a GPU free."""
    context, table = conditions.context, table_of(list(resolved))
    filled = memory(context.arch, context.machine, table, context.version, conditions.free_before_load_gib)
    before_load: Array = filled.card - filled.context
    now = np.array([config.mem_fraction_static or 0.0 for config in resolved])
    roomy = np.floor(100.0 * (now + (filled.free - GOOD_FREE_GIB) / before_load)) / 100.0
    return [float(fraction) for fraction in np.clip(roomy, SMALLEST_FRACTION, LARGEST_FRACTION)]


def rate_step(tok_s: float) -> int:
    """Return the rate in steps of 1 %, the largest first."""
    return -round(math.log(max(1e-9, tok_s)) / NEAR)


def _words_changed(typed: ServerConfig, change: ServerConfig) -> int:
    before, after = typed.as_dict(), change.as_dict()
    return sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())


def levers(now: ServerConfig, then: ServerConfig) -> frozenset[str]:
    """Name what differs for speed; all that only moves memory is one lever."""
    changed = {
        "attention DP": now.attn_dp_size != then.attn_dp_size,
        "EP": (now.ep_size, now.moe_a2a_backend) != (then.ep_size, then.moe_a2a_backend),
        "MTP": now.speculative != then.speculative,
    }
    return frozenset(name for name, differs in changed.items() if differs) or frozenset({"memory"})
