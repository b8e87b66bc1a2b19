"""SGLang's own fields after resolution, as its server_info prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from models.phases import decode_graphs, prefill_graphs
from models.version import at_least
from planner.sglang.backends import TRTLLM_METHODS, attention_pair, moe_runner
from planner.sglang.captured import SETTLED_WITH_ARGUMENTS, captured_sizes, graphs_captured
from planner.sglang.defaults import LARGEST_PREFILL_GRAPH, decode_graph_sizes, prefill_graph_sizes

NGRAM_BREADTH, NGRAM_DRAFTS = 10, 12
LARGEST_GRAPH = 8192  # a typed size beyond this is listed no further
MTP_NUMBERS = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverInput:
    """What was resolved: the typed configuration, the model, the machine and the release."""

    typed: ServerConfig
    arch: ModelArchitecture
    machine: Machine
    version: Version


def listed_sizes(config: ServerConfig) -> list[int]:
    """Return the decode graph sizes listed one by one, if they are."""
    settings = dict(dict(config.flag("cuda_graph_config") or {}).get("decode") or {})
    listed = settings.get("bs") or config.flag("cuda_graph_bs_decode") or config.flag("cuda_graph_bs") or ()
    return [size for size in listed if isinstance(size, int)]


def own_fields(source: ResolverInput, config: ServerConfig, settled_requests: int | None) -> dict[str, Any]:
    """Return SGLang's own fields after resolution, as its server_info would print them."""
    chunk = config.chunked_prefill_size or 0
    rank_chunk = chunk // max(1, config.attn_dp_size)
    prefill_backend, decode_backend = attention_pair(config)
    graphs_off = config.moe_a2a_backend == "deepep" and config.flag("deepep_mode") == "normal"
    eager = config.attention_backend in ("torch_native", "flex_attention") or graphs_off
    same = (
        "tp_size", "pp_size", "attn_dp_size", "ep_size", "nnodes", "moe_a2a_backend", "mem_fraction_static",
        "attention_backend", "page_size", "kv_cache_dtype", "schedule_policy", "schedule_conservativeness",
        "disable_radix_cache", "context_length",
    )  # fmt: skip
    return {
        **{name: getattr(config, name) for name in same},
        "dp_size": int(config.flag("dp_size", 1)),
        "moe_runner_backend": _runner(source),
        "chunked_prefill_size": rank_chunk,
        "max_prefill_tokens": config.max_prefill_tokens or 16384,
        "max_running_requests": settled_requests,
        "cuda_graph_max_bs_decode": _largest_captured(source, config),
        "cuda_graph_bs_decode": _captured_sizes(config),
        "decode_cuda_graph": decode_graphs(config) and not eager,
        "cuda_graph_bs_prefill": _prefill_sizes(config, chunk, rank_chunk),
        "prefill_cuda_graph": _prefill_captured(config, prefill_backend, eager),
        "prefill_attention_backend": prefill_backend,
        "decode_attention_backend": decode_backend,
        **_speculative_fields(config),
    }


def _runner(source: ResolverInput) -> str:
    """The MoE runner by the typed configuration; prefill context parallelism comes with an all-to-all backend."""
    own = source.arch.weight_formats.method in TRTLLM_METHODS and not source.typed.flag("enable_prefill_cp")
    return moe_runner(source.typed, source.version, blackwell=source.machine.is_blackwell and own)


def _largest_captured(source: ResolverInput, config: ServerConfig) -> int:
    """The largest decode graph; releases before 0.5.13 settle it in the graph runner."""
    if at_least(source.version, SETTLED_WITH_ARGUMENTS) or not graphs_captured(config):
        return config.cuda_graph_max_bs_decode or 0
    return max(captured_sizes(source.typed, source.machine, source.version), default=0)


def _captured_sizes(config: ServerConfig) -> list[int]:
    largest = min(config.cuda_graph_max_bs_decode or 0, LARGEST_GRAPH)
    speculative = config.flag("speculative_algorithm") is not None or config.speculative is not None
    padding = not config.flag("disable_cuda_graph_padding")
    return listed_sizes(config) or decode_graph_sizes(largest, speculative=speculative, padding=padding)


def _speculative_fields(config: ServerConfig) -> dict[str, Any]:
    """The four speculative fields; NGRAM and STANDALONE have defaults of their own."""
    spec, named = config.speculative, str(config.flag("speculative_algorithm") or "").upper()
    steps, topk, drafts = (config.flag(name) for name in MTP_NUMBERS)
    if spec is not None:
        named, steps, topk, drafts = "EAGLE", spec.num_steps, spec.eagle_topk, spec.num_draft_tokens
    elif named == "NGRAM":
        topk, drafts = config.flag("speculative_ngram_max_bfs_breadth", NGRAM_BREADTH), drafts or NGRAM_DRAFTS
    elif named in ("STANDALONE", "EAGLE3") and steps is None:
        steps, topk, drafts = 3, 1, 4
    elif named in ("STANDALONE", "EAGLE3") and topk == 1:
        drafts = steps + 1
    values = (named or None, steps, topk, drafts)
    return dict(zip(("speculative_algorithm", *MTP_NUMBERS), values, strict=True))


def _prefill_sizes(config: ServerConfig, chunk: int, rank_chunk: int) -> list[int]:
    listed = config.flag("cuda_graph_bs_prefill")
    if listed:
        return list(listed)
    largest = config.flag("cuda_graph_max_bs_prefill")
    if largest is None:
        largest = min(LARGEST_PREFILL_GRAPH, chunk)
        if config.attn_dp_size > 1:
            largest = min(largest, rank_chunk)
    return prefill_graph_sizes(int(largest))


def _prefill_captured(config: ServerConfig, backend: str, eager: bool) -> bool:
    """Say whether prefill graphs are captured in the end: trtllm_mla turns them off unless they were asked for."""
    captured = prefill_graphs(config)
    undone = backend == "trtllm_mla" or bool(config.flag("enable_prefill_cp"))
    graph_backend = config.flag("cuda_graph_backend_prefill")
    return captured is not None and not eager and (not undone or graph_backend is not None)
