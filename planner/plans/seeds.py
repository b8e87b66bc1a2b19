"""First configurations to launch: SGLang's default, the published recipe, then margin and spread."""

from __future__ import annotations

from collections.abc import Sequence

from models.config import ServerConfig, Speculative
from models.machine import Machine
from planner.plans.candidates import Candidate

# A seed keeps this share of the card free and is predicted within this share of the best: an optimiser's
# favourites sit where its model is wrong, so the plain top-k is never launched blindly.
MARGIN_SHARE = 0.02
WITHIN_BEST = 0.6


def recipe(machine: Machine) -> ServerConfig:
    """Return the layout SGLang's DeepSeek guide recommends for throughput: TP with attention DP on every GPU."""
    return ServerConfig(tp_size=machine.gpu_count, attn_dp_size=machine.gpu_count, nnodes=machine.nodes)


def sglang_default(machine: Machine) -> ServerConfig:
    """Return what most people start with: TP over all GPUs and no other flag."""
    return ServerConfig(tp_size=machine.gpu_count, nnodes=machine.nodes)


def spread_seeds(candidates: Sequence[Candidate], card_gib: float, count: int) -> list[Candidate]:
    """Choose `count` candidates with memory margin, near the predicted best, and far from each other."""
    if not candidates:
        return []
    best_rate = max(candidate.prediction.output_tok_s for candidate in candidates)
    pool = [
        candidate
        for candidate in candidates
        if candidate.ledger.free_gib >= MARGIN_SHARE * card_gib
        and candidate.prediction.output_tok_s >= WITHIN_BEST * best_rate
        and not candidate.misses
    ] or list(candidates[:1])
    spread = [pool[0]]
    while len(spread) < min(count, len(pool)):
        rest = [candidate for candidate in pool if candidate not in spread]
        spread.append(max(rest, key=lambda c: min(_distance(c.config, other.config) for other in spread)))
    return spread


def _distance(a: ServerConfig, b: ServerConfig) -> int:
    """Number of knobs in which two configurations differ."""
    return sum(x != y for x, y in zip(_knobs(a), _knobs(b), strict=True))


def _knobs(config: ServerConfig) -> tuple[int | str | Speculative | None, ...]:
    return (
        config.pp_size,
        config.attn_dp_size,
        config.ep_size,
        config.moe_a2a_backend,
        config.speculative,
        config.chunked_prefill_size,
    )
