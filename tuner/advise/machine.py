"""What no setting explains: a rank that is waited for, uneven experts, a server slower than its model or its like."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

from models.costs.balance import expert_balancedness
from tuner.advise.expected import Model, ratios
from tuner.advise.finding import Finding, FindingKind
from tuner.scrape.observed import Observed

# Others wait for a rank: for this share of a step at least, while it waits for no more than a third of that.
LEAST_WAIT_SHARE, OWN_WAIT = 0.08, 0.35
# Balancedness below what popularity alone gives by more than this is a fault of placement.
LEAST_UNBALANCE = 0.12
# Slower than predicted by so much, and beyond the band, is more than versions and traffic explain.
LEAST_SLOWNESS = 0.20
# Redundant copies of the busiest experts: what DeepSeek's own deployment keeps.
REDUNDANT = 32
LEAST_APART = 0.15


def slow_rank(model: Model, observed: Observed) -> Finding | None:
    """All ranks meet before every step, and all but one wait there."""
    waits = observed.sync_wait_ms
    if len(waits) < 2 or not observed.tpot_ms.get("mean"):
        return None
    rank = min(waits, key=lambda each: waits[each])
    others = statistics.median([wait for each, wait in waits.items() if each != rank])
    step_ms = observed.tpot_ms["mean"] * model.base.accepted_tokens
    share = others / step_ms
    if share < LEAST_WAIT_SHARE or waits[rank] > OWN_WAIT * others:
        return None
    share = min(share, 0.9)
    return Finding(
        kind=FindingKind.SLOW_RANK,
        evidence=f"before each step the other ranks wait {others:.1f} ms for attention-DP rank {rank}, which waits "
        f"{waits[rank]:.1f} ms itself ({share:.0%} of a step of {step_ms:.1f} ms)",
        change=f"look at the GPU and host process of rank {rank}: clocks and temperature (nvidia-smi -q -d "
        "PERFORMANCE), who else uses its cores; sgtune probe compares the GPUs",
        gain_percent=100.0 * share / (1.0 - share),
    )


def experts(model: Model, observed: Observed) -> Finding | None:
    """One GPU's experts get more tokens than the others', and all wait for it."""
    config, base = model.server.config, model.base
    if observed.balancedness is None or config.ep_size <= 1:
        return None
    natural = expert_balancedness(model.context.arch.n_routed_experts, config.ep_size, model.context.spread)
    if observed.balancedness > natural - LEAST_UNBALANCE:
        return None
    share = base.breakdown_ms["experts"] / max(1e-9, base.step_ms)
    typed = model.server.typed
    change = typed.with_flags(enable_eplb=True, ep_num_redundant_experts=REDUNDANT)
    flags = model.flags(change)
    if model.change(change) is None:  # the copies take memory, or the release has other words
        change = typed.with_flags(enable_eplb=True)
        flags = model.flags(change)
    return Finding(
        kind=FindingKind.EXPERTS_UNBALANCED,
        evidence=f"the mean GPU gets {observed.balancedness:.0%} of the tokens of the busiest one; uneven popularity "
        f"alone gives {natural:.0%}",
        change=flags or "spread the experts by what they are asked for: --enable-eplb",
        gain_percent=100.0 * share * (natural / max(0.02, observed.balancedness) - 1.0),
        before=model.line(typed),
        after=model.line(change) if flags else "",
    )


def slower(model: Model, observed: Observed, explained: float) -> Finding | None:
    """The server is slower than the model of exactly it; `explained` is what other findings explain of that.

    All that is known must say so: time per token, the whole request, and the output rate. A burst or a window that is
    not steady moves them apart.
    """
    measured = ratios(model, observed)
    slowness = {
        "tpot": measured.get("tpot_ms"),
        "e2e": measured.get("e2e_ms"),
        "rate": 1.0 / measured["output_tok_s"] if measured.get("output_tok_s") else None,
    }
    known_ratios = [ratio for ratio in slowness.values() if ratio]
    if not known_ratios:
        return None
    base = model.base
    lowest = [base.band["output_tok_s"][0] / base.output_tok_s]
    if base.tpot_ms["mean"] > 0:  # of answers of one token there is none
        lowest.append(base.tpot_ms["mean"] / base.band["tpot_mean_ms"][1])
    upper = 1.0 / max(0.05, min(lowest))
    ratio = min(known_ratios)
    unexplained = ratio / (1.0 + explained)
    if unexplained < max(1.0 + LEAST_SLOWNESS, upper):
        return None
    figure = "tpot_ms" if observed.tpot_ms.get("mean") and base.tpot_ms["mean"] else "e2e_ms"
    simple = "untuned MoE kernels (a warning in its log), throttled clocks, a slow link, a neighbour"
    return Finding(
        kind=FindingKind.SLOWER_THAN_MODEL,
        evidence=f"{figure.removesuffix('_ms').upper()} is {getattr(observed, figure)['mean']:,.1f} ms, "
        f"the model of this configuration under this traffic says {getattr(base, figure)['mean']:,.1f}; "
        f"by every figure it is at least {ratio - 1:.0%} slower, the model is sure to {upper - 1:.0%}",
        change=f"look for {simple}; sgtune probe measures the machine, and --calibrate FILE lets plan and tune start "
        "from what was seen",
        gain_percent=100.0 * (unexplained - 1.0),
    )


def machine_findings(model: Model, observed: Observed) -> list[Finding]:
    """Return what is wrong with the machine or its placement of experts."""
    finders: tuple[Callable[[Model, Observed], Finding | None], ...] = (slow_rank, experts)
    findings = [each for finder in finders if (each := finder(model, observed)) is not None]
    explained = sum(each.gain_percent for each in findings) / 100.0
    rest = slower(model, observed, explained)
    return [*findings, *([rest] if rest is not None else [])]


def unlike(models: dict[str, tuple[Model, Observed]]) -> list[Finding]:
    """Return the servers that are slower than their like: each measured against its own model under its own traffic."""
    ratio_of = {
        name: ratio for name, (model, observed) in models.items() if (ratio := ratios(model, observed).get("tpot_ms"))
    }
    if len(ratio_of) < 2:
        return []
    findings = []
    for name, ratio in ratio_of.items():
        typical = statistics.median([other for each, other in ratio_of.items() if each != name])
        if ratio > (1.0 + LEAST_APART) * typical:
            apart = ratio / typical - 1.0
            findings.append(
                Finding(
                    kind=FindingKind.SLOWER_THAN_ITS_LIKE,
                    evidence=f"TPOT over its model's is {apart:.0%} higher than that of the other servers",
                    change="compare its machine with theirs: sgtune probe --compare; clocks, links, a neighbour",
                    gain_percent=100.0 * apart,
                    server=name,
                )
            )
    return findings


def named(finding: Finding, server: str) -> Finding:
    """Return a finding of this server."""
    return replace(finding, server=server)
