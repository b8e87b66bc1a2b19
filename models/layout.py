"""ConfigTable: many server configurations as arrays, so that one piece of code predicts one or a million."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import ServerConfig
from models.phases import decode_graphs, decodes, prefill_graphs, prefills

Array = npt.NDArray[np.float64]
# What the 0/1 columns depend on: the fields that `_switches` and `models.phases` read.
SWITCHING = ("extra", "disable_cuda_graph", "pp_size", "moe_a2a_backend", "attention_backend", "kv_cache_dtype")

MAX_PREFILL_TOKENS = 16384  # SGLang's default --max-prefill-tokens
KV_BYTES = {"auto": 2.0, "bf16": 2.0, "bfloat16": 2.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigTable:
    """One array per property, all of one shape. Every default must have been resolved before.

    `a2a`, `dp_lm_head` and `fused_reduce` (all-reduce, residual and norm in one kernel) are 0/1; `mtp_steps` is 0
    without MTP; counts are global (not per rank) except `graph_max_bs`, which SGLang counts per attention-DP rank, and
    `max_total_tokens`, the most KV tokens a rank may have (infinite where nothing was said). `dense_tp` is the TP
    degree of the dense layers; the columns after `redundant_experts` are 0/1: `default_attention` says that no other
    backend than SGLang's own choice on NVIDIA GPUs was asked for, `converted_kv` that an FP8 cache is converted to
    BF16 layer by layer, `balanced_experts` that something keeps the EP ranks evenly loaded (redundant experts, or a
    dispatch that ignores what tokens choose).
    """

    tp: Array
    pp: Array
    attn_dp: Array
    ep: Array
    nodes: Array
    a2a: Array
    dp_lm_head: Array
    mtp_steps: Array
    draft_tokens: Array
    mem_fraction: Array
    max_running: Array
    chunk: Array
    max_prefill: Array
    graph_max_bs: Array
    graphs: Array
    kv_element_bytes: Array
    context_length: Array
    recv_interval: Array
    max_total_tokens: Array
    fused_reduce: Array
    dense_tp: Array
    redundant_experts: Array
    shared_fusion: Array
    prefills: Array
    decodes: Array
    decode_graphs: Array
    prefill_graphs: Array
    a2a_normal_only: Array
    a2a_low_latency_only: Array
    symm_mem: Array
    default_attention: Array
    converted_kv: Array
    balanced_experts: Array

    @property
    def attn_tp(self) -> Array:
        """GPUs that share one attention group."""
        return self.tp / self.attn_dp

    @property
    def gpus(self) -> Array:
        return self.tp * self.pp

    @property
    def tokens_per_request(self) -> Array:
        """Tokens one running request sends through the model per decode step (MTP verifies several)."""
        return np.where(self.mtp_steps > 0, self.draft_tokens, 1.0)

    @property
    def most_running(self) -> Array:
        """Requests that may run at once over all ranks: SGLang divides the global figure by the ranks."""
        return np.maximum(1.0, np.floor(self.max_running / self.attn_dp)) * self.attn_dp

    def column(self) -> ConfigTable:
        """Return the table as a column, to be broadcast against a row of concurrencies."""
        return self._map(lambda values: values.reshape(-1, 1))

    def take(self, index: npt.NDArray[np.intp]) -> ConfigTable:
        return self._map(lambda values: values[index])

    def _map(self, change: Callable[[Array], Array]) -> ConfigTable:
        return ConfigTable(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def table_of(configs: Sequence[ServerConfig]) -> ConfigTable:
    """Build the table of resolved configurations. Raises ValueError for one that is not resolved."""

    def column(name: str) -> Array:
        values = [getattr(config, name) for config in configs]
        if any(value is None for value in values):
            raise ValueError(f"{name} is not resolved: pass the configuration through planner.sglang.resolver first")
        return np.array(values, dtype=np.float64)

    steps = [config.speculative.num_steps if config.speculative else 0 for config in configs]
    drafts = [config.speculative.num_draft_tokens if config.speculative else 1 for config in configs]
    return ConfigTable(
        tp=column("tp_size"),
        pp=column("pp_size"),
        attn_dp=column("attn_dp_size"),
        ep=column("ep_size"),
        nodes=column("nnodes"),
        a2a=np.array([config.moe_a2a_backend != "none" for config in configs], dtype=np.float64),
        dp_lm_head=column("enable_dp_lm_head"),
        mtp_steps=np.array(steps, dtype=np.float64),
        draft_tokens=np.array(drafts, dtype=np.float64),
        mem_fraction=column("mem_fraction_static"),
        max_running=column("max_running_requests"),
        chunk=np.array([_chunk(config) for config in configs]),
        max_prefill=np.array([float(config.max_prefill_tokens or MAX_PREFILL_TOKENS) for config in configs]),
        graph_max_bs=column("cuda_graph_max_bs_decode"),
        graphs=np.array([not config.disable_cuda_graph for config in configs], dtype=np.float64),
        kv_element_bytes=np.array([KV_BYTES[config.kv_cache_dtype or "auto"] for config in configs]),
        context_length=column("context_length"),
        recv_interval=column("scheduler_recv_interval"),
        max_total_tokens=np.array([float(config.flag("max_total_tokens") or np.inf) for config in configs]),
        fused_reduce=np.array([bool(c.flag("enable_flashinfer_allreduce_fusion")) for c in configs], dtype=np.float64),
        dense_tp=np.array([float(config.flag("moe_dense_tp_size") or config.tp_size) for config in configs]),
        redundant_experts=np.array([max(0.0, float(config.flag("ep_num_redundant_experts", 0))) for config in configs]),
        **_switches(configs),
    )


def _switches(configs: Sequence[ServerConfig]) -> dict[str, Array]:
    """Return the 0/1 columns of flags beyond ServerConfig's fields."""
    readings: dict[str, Callable[[ServerConfig], bool]] = {
        "shared_fusion": lambda c: not c.flag("disable_shared_experts_fusion"),
        "prefills": prefills,
        "decodes": decodes,
        "decode_graphs": decode_graphs,
        "prefill_graphs": lambda c: prefill_graphs(c) is not None,
        "a2a_normal_only": lambda c: c.flag("deepep_mode") == "normal",
        "a2a_low_latency_only": lambda c: c.flag("deepep_mode") == "low_latency",
        "balanced_experts": lambda c: (
            c.moe_a2a_backend != "none" or bool(c.flag("enable_eplb")) or c.flag("ep_dispatch_algorithm") == "fake"
        ),
        "symm_mem": lambda c: bool(c.flag("enable_symm_mem")),
        "default_attention": lambda c: (c.attention_backend or "fa3") in ("fa3", "flashattention"),
        "converted_kv": lambda c: (
            (c.kv_cache_dtype or "auto").startswith("fp8") and c.attention_backend in ("fa3", "flashinfer")
        ),
    }
    rows: dict[tuple[Any, ...], list[float]] = {}
    switch_rows = []
    for config in configs:  # of a grid thousands share all that the switches depend on
        key = tuple(id(getattr(config, name)) for name in SWITCHING)
        if key not in rows:
            rows[key] = [float(reading(config)) for reading in readings.values()]
        switch_rows.append(rows[key])
    columns = np.array(switch_rows, dtype=np.float64).reshape(len(configs), len(readings))
    return {name: columns[:, number].copy() for number, name in enumerate(readings)}


def _chunk(config: ServerConfig) -> float:
    """Tokens a prefill pass may hold: the chunk, or without chunking (-1) whatever the longest prompt has."""
    chunk = config.chunked_prefill_size
    if chunk is None or config.context_length is None:
        raise ValueError(
            "chunked_prefill_size is not resolved: pass the configuration through planner.sglang.resolver first"
        )
    return float(chunk if chunk > 0 else max(config.context_length, config.max_prefill_tokens or MAX_PREFILL_TOKENS))
