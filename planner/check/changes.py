"""Changes of a launch that may help it: memory, layout, MTP; which of them do is for advice.py to find out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor

from packaging.version import Version

from models.config import ServerConfig, Speculative
from models.serving.estimate import Context
from models.workload import Slo, Workload
from planner.check.judge import Checked, Weighed
from planner.check.memory_fit import fractions_that_fit
from planner.plans.space import GRAPH_SIZES, MTP_STEPS, graph_size, layouts_on
from planner.sglang.resolver import SPECULATIVE_MAX_RUNNING

SMALLEST_FRACTION, LARGEST_FRACTION = 0.3, 0.97
# Room for a rank that gets more than its share, and the graph size SGLang's recipes use under attention DP.
SPARE_REQUESTS = 2
COMMON_GRAPH = 64
# Stands for what a second node adds: the address of the first.
FIRST_NODE = "FIRST_NODE:20000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What every change is judged under. `free_before_load_gib` is what a log printed, None for the catalogue's."""

    context: Context
    workload: Workload
    slos: tuple[Slo, ...] = ()
    free_before_load_gib: float | None = None


def memory_changes(checked: Checked, weighed: Weighed, conditions: Conditions) -> Iterator[ServerConfig]:
    """Yield the typed launch with smaller graphs, chunk or request table, an FP8 cache, and where it does not fit
    other layouts and a second node."""
    typed, now, workload = checked.typed, checked.resolved.config, conditions.workload
    machine = conditions.context.machine
    per_rank = -(-workload.concurrency // max(1, now.attn_dp_size))
    sizes = {graph_size(SPARE_REQUESTS * per_rank), max(COMMON_GRAPH, graph_size(per_rank))}
    for size in sorted(size for size in sizes if size < (now.cuda_graph_max_bs_decode or 0)):
        yield replace(typed, cuda_graph_max_bs_decode=size)
    running = per_rank * max(1, now.attn_dp_size) * SPARE_REQUESTS
    if running < (now.max_running_requests or 0):
        yield replace(typed, max_running_requests=running)
    if (now.chunked_prefill_size or 0) > 4096 * now.attn_dp_size:
        yield replace(typed, chunked_prefill_size=4096 * now.attn_dp_size)
    if now.kv_cache_dtype == "auto" and (machine.is_hopper or machine.is_blackwell):
        backend = "flashmla" if machine.is_hopper else "trtllm_mla"
        yield replace(typed, kv_cache_dtype="fp8_e4m3", attention_backend=backend)
    if not weighed.fits:
        for layout in _smaller_layouts(typed, machine.gpus_per_node):
            yield layout
            yield replace(layout, cuda_graph_max_bs_decode=COMMON_GRAPH)


def _smaller_layouts(typed: ServerConfig, gpus_per_node: int) -> Iterator[ServerConfig]:
    for dp in (1, 2, 4):
        if 1 <= dp < typed.attn_dp_size and typed.tp_size % dp == 0:
            yield replace(typed, attn_dp_size=dp, enable_dp_lm_head=False)
    if typed.nnodes == 1 and typed.pp_size == 1 and typed.tp_size == gpus_per_node:
        wider = replace(typed, tp_size=2 * typed.tp_size, nnodes=2).with_flags(dist_init_addr=FIRST_NODE)
        yield wider if typed.ep_size == 1 else replace(wider, ep_size=wider.tp_size)


def speed_changes(typed: ServerConfig, conditions: Conditions) -> Iterator[ServerConfig]:
    """Yield the typed launch with every attention-DP degree, EP and MTP depth its GPUs allow, each also with graphs
    just large enough; where SGLang's cap under MTP is below the clients, with the cap lifted.

    An all-to-all backend is kept, never proposed: it is a library to install and an environment to set.
    """
    steps = MTP_STEPS if conditions.context.arch.has_mtp else (0,)
    clients = conditions.workload.concurrency
    for layout in _layouts(typed, conditions.context.version):
        per_rank = -(-clients // layout.attn_dp_size)
        for depth in steps:
            change = replace(layout, speculative=Speculative.chain(depth) if depth else None)
            if depth and typed.max_running_requests is None and clients > SPECULATIVE_MAX_RUNNING:
                change = replace(change, max_running_requests=per_rank * layout.attn_dp_size)
            yield change
            if typed.cuda_graph_max_bs_decode is None and per_rank <= GRAPH_SIZES[-1]:
                yield replace(change, cuda_graph_max_bs_decode=graph_size(per_rank))


def _layouts(typed: ServerConfig, version: Version) -> Iterator[ServerConfig]:
    base = replace(typed, attn_dp_size=1, ep_size=1, moe_a2a_backend="none")
    for layout in layouts_on(base, version):
        if layout.moe_a2a_backend in ("none", typed.moe_a2a_backend):
            yield replace(layout, enable_dp_lm_head=typed.enable_dp_lm_head and layout.attn_dp_size > 1)


def best_fraction(weighed: Weighed) -> float:
    """Return the largest memory fraction that leaves enough free, in hundredths where the room allows it."""
    least, most = fractions_that_fit(weighed)
    coarse = floor(most * 100) / 100
    return min(LARGEST_FRACTION, max(SMALLEST_FRACTION, coarse if coarse > least else most))
