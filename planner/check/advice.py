"""Advice: other settings of the same launch, each resolved and weighed again; only what gains is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.costs.memory import GOOD_FREE_GIB, MemoryLedger
from models.serving.estimate import Context
from models.workload import Workload
from planner.check.judge import Checked, Weighed, judge, weigh
from planner.check.memory_fit import fractions_that_fit
from planner.plans.space import graph_size
from planner.rules import ERRORS
from planner.sglang.dialects import to_flags

SMALLEST_FRACTION, LARGEST_FRACTION = 0.3, 0.97
LEAST_GAIN = 0.03
MOST_ADVICE = 6
LEAST_FREED_GIB = 0.05
# Room for a rank that gets more than its share, and the graph size SGLang's recipes use under attention DP.
SPARE_REQUESTS = 2
COMMON_GRAPH = 64
# Stands for what a second node adds: the address of the first, and on each node its rank.
FIRST_NODE, NODE_RANK = "FIRST_NODE:20000", " --node-rank RANK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change of the launch: the flags to add, what it does, and KV tokens per rank before and after."""

    flags: str
    text: str
    kv_before: int
    kv_after: int
    makes_it_fit: bool
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    change: ServerConfig
    checked: Checked
    weighed: Weighed


def advise(
    checked: Checked, weighed: Weighed, context: Context, workload: Workload, free_before_load_gib: float | None
) -> list[Advice]:
    """Try alternatives of the typed launch and return those that gain, most KV cache first.

    An alternative that the release cannot express or that fails for another reason is left out, and more nodes are
    proposed only where nothing helps on those there are.
    """
    found: dict[str, Advice] = {}
    for change in _alternatives(checked, weighed, context, workload, free_before_load_gib):
        tried = _try(change, context, workload, free_before_load_gib)
        if tried is None or not tried.checked.sound:
            continue
        advice = _worth_saying(checked, weighed, tried, context)
        if advice is not None:
            found.setdefault(advice.flags, advice)
    least_nodes = min((advice.nodes for advice in found.values()), default=1)
    here = [advice for advice in found.values() if advice.nodes == least_nodes]
    ordered = sorted(here, key=lambda a: (not a.makes_it_fit, len(a.flags.split(" --")), -a.kv_after))
    return ordered[:MOST_ADVICE]


def _alternatives(
    checked: Checked, weighed: Weighed, context: Context, workload: Workload, free_before_load_gib: float | None
) -> Iterator[ServerConfig]:
    typed, now = checked.typed, checked.resolved.config
    per_rank = -(-workload.concurrency // max(1, now.attn_dp_size))
    sizes = {graph_size(SPARE_REQUESTS * per_rank), max(COMMON_GRAPH, graph_size(per_rank))}
    smaller = [size for size in sorted(sizes) if size < (now.cuda_graph_max_bs_decode or 0)]
    single = [replace(typed, cuda_graph_max_bs_decode=size) for size in smaller]
    running = per_rank * max(1, now.attn_dp_size) * SPARE_REQUESTS
    if running < (now.max_running_requests or 0):
        single.append(replace(typed, max_running_requests=running))
    if (now.chunked_prefill_size or 0) > 4096 * now.attn_dp_size:
        single.append(replace(typed, chunked_prefill_size=4096 * now.attn_dp_size))
    if now.kv_cache_dtype == "auto" and (context.machine.is_hopper or context.machine.is_blackwell):
        backend = "flashmla" if context.machine.is_hopper else "trtllm_mla"
        single.append(replace(typed, kv_cache_dtype="fp8_e4m3", attention_backend=backend))
    if not weighed.fits:
        for layout in _other_layouts(typed, context):
            single += [layout, replace(layout, cuda_graph_max_bs_decode=COMMON_GRAPH)]
    yield from single
    for change in [typed, *single]:
        tried = _try(change, context, workload, free_before_load_gib)
        if tried is not None:
            fraction = _best_fraction(tried.weighed)
            if abs(fraction - (tried.checked.resolved.config.mem_fraction_static or 0)) >= 0.01:
                yield replace(change, mem_fraction_static=fraction)


def _best_fraction(weighed: Weighed) -> float:
    """Return the largest memory fraction that leaves enough free, in hundredths where the room allows it."""
    least, most = fractions_that_fit(weighed)
    coarse = floor(most * 100) / 100
    return min(LARGEST_FRACTION, max(SMALLEST_FRACTION, coarse if coarse > least else most))


def _other_layouts(typed: ServerConfig, context: Context) -> Iterator[ServerConfig]:
    for dp in (1, 2, 4):
        if 1 <= dp < typed.attn_dp_size and typed.tp_size % dp == 0:
            yield replace(typed, attn_dp_size=dp, enable_dp_lm_head=False)
    if typed.nnodes == 1 and typed.pp_size == 1 and typed.tp_size == context.machine.gpus_per_node:
        wider = replace(typed, tp_size=2 * typed.tp_size, nnodes=2).with_flags(dist_init_addr=FIRST_NODE)
        yield wider if typed.ep_size == 1 else replace(wider, ep_size=wider.tp_size)


def _try(change: ServerConfig, context: Context, workload: Workload, free_gib: float | None) -> _Tried | None:
    checked = judge(change, context.arch, context.machine, context.version, rules=ERRORS)
    weighed = weigh(checked, context, workload, free_gib)
    return None if weighed is None else _Tried(change=change, checked=checked, weighed=weighed)


def _worth_saying(checked: Checked, weighed: Weighed, tried: _Tried, context: Context) -> Advice | None:
    """Return the sentence when the change makes the launch fit, or gains KV cache without running out of room."""
    before, after = weighed.ledger, tried.weighed.ledger
    if not tried.weighed.fits or tried.weighed.shortage_gib > 0:
        return None
    fitting = not weighed.fits or weighed.shortage_gib > 0
    safe = after.free_gib >= min(GOOD_FREE_GIB - 0.01, before.free_gib)
    gains = after.kv_tokens >= before.kv_tokens * (1 + LEAST_GAIN) or after.free_gib >= before.free_gib + 2.0
    if not fitting and not (safe and gains and after.kv_tokens >= before.kv_tokens):
        return None
    flags = _flags(checked.typed, tried.change, context)
    if not flags:
        return None
    freed = _reserved(before) - _reserved(after)
    kv = f"KV {_k(before.kv_tokens_per_rank)} -> {_k(after.kv_tokens_per_rank)} tokens a rank"
    old, new = checked.resolved.config.mem_fraction_static or 0, tried.checked.resolved.config.mem_fraction_static or 0
    fraction = f", mem_fraction_static {old:g} -> {new:g}" if old != new else ""
    effect = "makes it fit" if fitting else f"frees {freed:.1f} GiB a rank" if freed >= LEAST_FREED_GIB else "pays"
    gain = f"{flags} {effect}: {kv}"
    return Advice(
        flags=flags,
        text=f"{gain} ({_k(after.kv_tokens)} in all){fraction}",
        kv_before=before.kv_tokens_per_rank,
        kv_after=after.kv_tokens_per_rank,
        makes_it_fit=fitting,
        nodes=tried.change.nnodes,
    )


def _reserved(ledger: MemoryLedger) -> float:
    """GiB of one GPU that are neither weights nor KV pool."""
    parts = ledger.per_gpu_gib
    return float(sum(gib for owner, gib in parts.items() if owner != "KV pool" and not owner.startswith("weights")))


def _k(tokens: int) -> str:
    if tokens < 10_000:
        return f"{tokens:,}"
    return f"{tokens / 1e6:.2f}M" if tokens >= 1_000_000 else f"{tokens / 1e3:.0f}k"


def _flags(typed: ServerConfig, change: ServerConfig, context: Context) -> str | None:
    """Return what to add to the typed launch and what to leave out; None where the release cannot say it."""
    try:
        before, after = to_flags(typed, context.version), to_flags(change, context.version)
    except InputError:
        return None
    added = " ".join(word for flag in after if flag not in before for word in flag.argv)
    if change.nnodes > typed.nnodes:
        added += NODE_RANK
    left = {flag.name for flag in after}
    gone = [flag.name for flag in before if flag.name not in left]
    return added + (" without " + " ".join(gone) if gone else "")
