"""Whether a launch line fits the machine's memory, in words: the shortage, its size, and settings that fit."""

from __future__ import annotations

from math import ceil, floor

from models.costs.memory import GOOD_FREE_GIB
from planner.check.judge import LEAST_FREE_GIB, Checked, Weighed
from planner.violation import Severity, Violation

LEAST_POOL_GIB = 0.01
CONTEXT = "context and NCCL"


def memory_violations(checked: Checked, weighed: Weighed, longest_request: int) -> list[Violation]:
    """Return the memory violations of a launch: never fits, no KV cache, no room for graphs, too few tokens."""
    ledger, config = weighed.ledger, checked.resolved.config
    fraction = config.mem_fraction_static or 0.0
    if weighed.least_shortage_gib > 0:
        return [_never(weighed)]
    if weighed.shortage_gib > 0:
        return [_not_as_set(weighed)]
    if ledger.kv_tokens <= 0:
        return [_no_pool(weighed, fraction)]
    violations = [_no_room(weighed, fraction)] if ledger.free_gib < 0 else []
    if ledger.kv_tokens_per_rank < longest_request:
        violations.append(
            Violation(
                rule="request-beyond-pool",
                severity=Severity.ERROR,
                message=f"a rank's KV pool holds {ledger.kv_tokens_per_rank:,} tokens, the longest request "
                f"{longest_request:,}",
                fix="give the KV pool more memory, or expect shorter requests (--isl, --osl)",
            )
        )
    return violations + _cap_without_effect(checked, ledger.kv_tokens_per_rank)


def _cap_without_effect(checked: Checked, kv_tokens_per_rank: int) -> list[Violation]:
    most = checked.resolved.config.flag("max_total_tokens")
    if most is None or kv_tokens_per_rank >= most:
        return []
    return [
        Violation(
            rule="max-total-tokens-above-pool",
            severity=Severity.NOTE,
            message=f"--max-total-tokens {most:,} is more than the {kv_tokens_per_rank:,} tokens a rank that fit: "
            "SGLang takes what fits",
            fix="leave it out, or raise --mem-fraction-static",
        )
    ]


def fractions_that_fit(weighed: Weighed) -> tuple[float, float]:
    """Return the memory fractions between which weights, graphs and activations fit; the ends are in order.

    The upper end leaves 5 GiB free, or 1 GiB where the card holds no more; below the lower end the weights do not fit.
    """
    least = ceil(1000 * (weighed.ledger.weights_gib + LEAST_POOL_GIB) / weighed.before_load_gib) / 1000
    most = floor(1000 * weighed.fraction_leaving(LEAST_FREE_GIB)) / 1000
    good = floor(1000 * weighed.fraction_leaving(GOOD_FREE_GIB)) / 1000
    return least, good if good > least else most


def _no_pool(weighed: Weighed, fraction: float) -> Violation:
    least, most = fractions_that_fit(weighed)
    fix = f"set --mem-fraction-static between {least:.3f} and {most:.3f}, or shrink graphs and chunk"
    if most <= least:
        fix = "no --mem-fraction-static holds both weights and graphs: shrink graphs and chunk first"
    return Violation(
        rule="no-kv-cache",
        severity=Severity.ERROR,
        message=f"at mem_fraction_static {fraction:g} the weights ({weighed.ledger.weights_gib:.1f} GiB a GPU) leave "
        "nothing for the KV cache: SGLang stops after loading",
        fix=fix,
    )


def _no_room(weighed: Weighed, fraction: float) -> Violation:
    least, most = fractions_that_fit(weighed)
    lower = f"lower --mem-fraction-static to {most:.3f}, or" if most > least else "lower"
    return Violation(
        rule="no-room-for-graphs",
        severity=Severity.ERROR,
        message=f"graphs, activations and the request table lack {-weighed.ledger.free_gib:.1f} GiB a GPU beside the "
        f"KV pool of mem_fraction_static {fraction:g}: out of memory in graph capture or prefill",
        fix=f"{lower} the graph sizes, chunk or running requests",
    )


def _never(weighed: Weighed) -> Violation:
    ledger = weighed.ledger
    return Violation(
        rule="never-fits",
        severity=Severity.ERROR,
        message=f"it can never fit: weights of {ledger.weights_gib:.1f} GiB and {ledger.per_gpu_gib[CONTEXT]:.1f} GiB "
        f"of CUDA context and NCCL leave too little of the {ledger.card_gib:.1f} GiB card; even without graphs, with "
        f"the smallest chunk and one request a rank {weighed.least_shortage_gib:.1f} GiB a GPU are missing, whatever "
        "--mem-fraction-static is",
        fix="spread the weights wider: less attention DP, or more GPUs (--tp-size over more nodes)",
    )


def _not_as_set(weighed: Weighed) -> Violation:
    ledger = weighed.ledger
    fixed = {name: gib for name, gib in ledger.per_gpu_gib.items() if name not in ("KV pool", "free")}
    others = ", ".join(f"{name} {gib:.1f}" for name, gib in fixed.items() if not name.startswith("weights"))
    return Violation(
        rule="does-not-fit",
        severity=Severity.ERROR,
        message="it does not fit as set, whatever --mem-fraction-static is: "
        f"weights {ledger.weights_gib:.1f}, {others} GiB a GPU are {weighed.shortage_gib:.1f} GiB more than the "
        f"{ledger.card_gib:.1f} GiB card holds with one request and 1 GiB spare",
        fix="make graphs, chunk or running requests smaller, or spread the weights over more GPUs",
    )
