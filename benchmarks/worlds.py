"""Generated worlds for benchmarks/search.py: machines that differ from the planner's belief, by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tuner.world import Effect, World

# Spread of the natural logarithm of each engine parameter; EP and attention DP costs differ by factors.
SPREAD = {"tau_us": 0.15, "eta_w": 0.10, "eta_pf": 0.15, "t_pf0_ms": 0.20, "eta_kv": 0.10, "token_us": 0.20}
FACTORS = ("ep_layer_us", "dp_layer_us")
KNOBS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("attn_dp_size", (2, 4, 8)),
    ("ep_size", (8,)),
    ("pp_size", (2, 4)),
    ("mtp_steps", (1, 2, 3)),
    ("cuda_graph_max_bs_decode", (128, 256, 512)),
)
QUESTIONS = ((1000, 1000, 256), (500, 200, 64), (2000, 300, 128), (200, 1500, 512), (4000, 500, 96), (128, 128, 32))
MACHINES = ("h200x8", "nf5688g7", "h20-3ex8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A world and what is asked there."""

    machine: str
    isl: int
    osl: int
    concurrency: int
    world: World


def problem(number: int) -> Problem:
    """Return the generated problem of this number, always the same one."""
    rng = np.random.default_rng([8, number])
    parameters = {name: math.exp(rng.normal(0.0, spread)) for name, spread in SPREAD.items()}
    parameters |= {name: math.exp(rng.uniform(math.log(0.4), math.log(3.0))) for name in FACTORS}
    isl, osl, concurrency = QUESTIONS[int(rng.integers(len(QUESTIONS)))]
    world = World(
        name=f"world {number}",
        parameters=parameters,
        sigma=float(rng.uniform(0.3, 1.5)),
        acceptance=float(rng.uniform(0.4, 0.85)),
        extra_memory_gib=float(rng.choice([0.0, rng.uniform(0.5, 2.5), rng.uniform(2.5, 7.0)])),
        noise=0.03,
        effects=tuple(_effect(rng, 1) for _ in range(3)) + tuple(_effect(rng, 2) for _ in range(4)),
    )
    machine = MACHINES[int(rng.integers(len(MACHINES)))]
    return Problem(machine=machine, isl=isl, osl=osl, concurrency=concurrency, world=world)


def _effect(rng: np.random.Generator, knobs: int) -> Effect:
    chosen = rng.choice(len(KNOBS), size=knobs, replace=False)
    when: dict[str, int | float | str | bool] = {KNOBS[i][0]: int(rng.choice(KNOBS[i][1])) for i in chosen}
    return Effect(when=when, time_factor=math.exp(rng.normal(0.0, 0.08)))
