"""Worlds that differ from the planner's belief, made from a seed: what the search benchmark tunes in."""

from __future__ import annotations

import numpy as np

from tuner.world import Effect, World

# Spread (log) of each figure of the machine around the belief.
FIGURES = {"tau_us": 0.25, "eta_w": 0.2, "eta_pf": 0.25, "eta_kv": 0.25, "host_ms": 0.4, "t_pf0_ms": 0.3,
           "token_us": 0.3, "ep_layer_us": 0.8, "dp_layer_us": 0.8}  # fmt: skip
KNOBS = {
    "attn_dp_size": (1, 8),
    "ep_size": (1, 8),
    "mtp_steps": (0, 1, 2, 3),
    "pp_size": (2,),
    "chunked_prefill_size": (2048, 4096, 8192, 16384),
}
NOISE = 0.03
BOOT_S = 420.0


def world(seed: int) -> World:
    """Return the world of a seed: figures, skew, acceptance, memory beyond the ledger, effects of knobs and pairs."""
    rng = np.random.default_rng(seed)
    return World(
        name=f"world-{seed}",
        parameters={name: float(np.exp(rng.normal(0.0, spread))) for name, spread in FIGURES.items()},
        sigma=float(rng.uniform(0.1, 0.8)),
        acceptance=float(rng.uniform(0.45, 0.9)),
        extra_memory_gib=float(rng.choice([-0.5, 0.5, 1.5, 3.0, 6.0])),
        noise=NOISE,
        boot_s=BOOT_S,
        effects=tuple(_effect(rng) for _ in range(int(rng.integers(4, 11)))),
    )


def _effect(rng: np.random.Generator) -> Effect:
    """One knob's effect, or an interaction of two: 0.7 to 1.6 times as long a step."""
    names = rng.choice(list(KNOBS), size=int(rng.integers(1, 3)), replace=False)
    when: dict[str, int | float | str | bool] = {str(name): int(rng.choice(KNOBS[str(name)])) for name in names}
    return Effect(when=when, time_factor=float(rng.uniform(0.7, 1.6)))
