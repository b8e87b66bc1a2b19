"""Worlds that differ from the planner's belief, and the questions asked in them: what the search benchmark tunes in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuner.engines.world import Effect, World

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
# Knobs no equation prices: half of the worlds have an effect of one or two of them.
UNPRICED: dict[str, tuple[int | float | str | bool, ...]] = {
    "moe_runner_backend": ("deep_gemm",), "attention_backend": ("flashmla", "flashinfer"), "stream_interval": (10,),
    "scheduler_recv_interval": (10,), "enable_mixed_chunk": (True,), "disable_radix_cache": (True,),
}  # fmt: skip
NOISE = 0.03
BOOT_S = 420.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question; `tpot_limit` is a limit on the mean TPOT as a multiple of what the plan expects (None: no limit)."""

    hardware: str = "h200x8"
    version: str = "0.5.12"
    isl: int = 1000
    osl: int = 1000
    concurrency: int = 256
    mtp: bool = True
    tpot_limit: float | None = None


MACHINES = ("h200x8", "nf5688g7", "b200x8", "h20x8", "2xh100x8")
VERSIONS = ("0.5.23", "0.5.12", "0.5.3", "0.4.6", "0.4.3")
LENGTHS = ((1000, 1000), (4000, 500), (200, 400), (2000, 200))
CLIENTS = (16, 64, 128, 256)


def question(seed: int) -> Asked:
    """Return the question of a seed: another one in every world."""
    rng = np.random.default_rng([seed, 1])
    isl, osl = LENGTHS[int(rng.integers(len(LENGTHS)))]
    return Asked(
        hardware=str(rng.choice(MACHINES, p=(0.4, 0.2, 0.15, 0.1, 0.15))),
        version=str(rng.choice(VERSIONS, p=(0.35, 0.2, 0.1, 0.15, 0.2))),
        isl=isl,
        osl=osl,
        concurrency=int(rng.choice(CLIENTS)),
        mtp=bool(rng.random() < 0.7),
        tpot_limit=float(rng.uniform(0.9, 1.5)) if rng.random() < 0.35 else None,
    )


def world(seed: int, *, unpriced: bool = True) -> World:
    """Return the world of a seed: figures, skew, acceptance, memory beyond the ledger, effects of knobs and pairs."""
    rng = np.random.default_rng(seed)
    priced_world = World(
        name=f"world-{seed}",
        parameters={name: float(np.exp(rng.normal(0.0, spread))) for name, spread in FIGURES.items()},
        sigma=float(rng.uniform(0.1, 0.8)),
        acceptance=float(rng.uniform(0.45, 0.9)),
        extra_memory_gib=float(rng.choice([-0.5, 0.5, 1.5, 3.0, 6.0])),
        noise=NOISE,
        boot_s=BOOT_S,
        effects=tuple(_effect(rng) for _ in range(int(rng.integers(4, 11)))),
    )
    if not unpriced or rng.random() < 0.5:
        return priced_world
    more = tuple(_unpriced_effect(rng) for _ in range(int(rng.integers(1, 3))))
    return World(
        **{name: getattr(priced_world, name) for name in World.__slots__} | {"effects": (*priced_world.effects, *more)}
    )


def _effect(rng: np.random.Generator) -> Effect:
    """One knob's effect, or an interaction of two: 0.7 to 1.6 times as long a step."""
    names = rng.choice(list(KNOBS), size=int(rng.integers(1, 3)), replace=False)
    when: dict[str, int | float | str | bool] = {str(name): int(rng.choice(KNOBS[str(name)])) for name in names}
    return Effect(when=when, time_factor=float(rng.uniform(0.7, 1.6)))


def _unpriced_effect(rng: np.random.Generator) -> Effect:
    name = str(rng.choice(list(UNPRICED)))
    values = UNPRICED[name]
    return Effect(when={name: values[int(rng.integers(len(values)))]}, time_factor=float(rng.uniform(0.88, 1.15)))
