"""One decode step of the whole model, as a sum of named costs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from models.costs.kernels import (
    US,
    ByNumber,
    ByWidth,
    Experts,
    Rates,
    all_reduce_s,
    dispatch_combine_s,
    distinct_experts,
    gemm_s,
    moe_ep_s,
    moe_tp_s,
)
from models.costs.launches import fused_nodes, graph_nodes, launch_floor_s
from models.costs.prefill import DP_COLLECTIVE_SHARE
from models.costs.system import System
from models.costs.weight_kernels import bf16_kernel, kernel_of
from models.engine.profile import EngineParameters
from models.layout import Array, ConfigTable

SAMPLING_S = 8.0 * US
# Of the extra tokens MTP verifies, the share that touches experts the first token did not.
MTP_NEW_EXPERT_SHARE = 0.85
# One pass of the draft layer (SGLang traces on H200); what else a speculative step costs is the profile's.
MTP_DRAFT_STEP_S = 0.5e-3
# Pipeline parallelism turns overlap scheduling off: each stage's host work is exposed (assumed 3 ms), and
# hidden states hop between stages.
PP_HOST_S = 3.0e-3
PP_HOP_S = 30.0 * US


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """Seconds of one decode step by cost.

    `kv_slope` is the part of `kv_attention` per context token up to `kv_knee` tokens, `kv_beyond` that of the tokens
    after it: dense attention has no knee.
    """

    attention_gemm: Array
    kv_attention: Array
    experts: Array
    shared_expert: Array
    gate: Array
    dense_mlp: Array
    collectives: Array
    head: Array
    launch: Array
    token_work: Array
    host: Array
    rank_sync: Array
    draft: Array
    eager: Array
    kv_slope: Array
    kv_beyond: Array
    kv_knee: float = np.inf

    @property
    def total(self) -> Array:
        return sum((getattr(self, name) for name in COSTS), start=np.zeros(()))

    def parts_ms(self) -> dict[str, Array]:
        """Return every cost in ms; they sum to the step."""
        return {name: getattr(self, name) * 1e3 for name in COSTS}


_SLOPES = ("kv_slope", "kv_beyond", "kv_knee")
COSTS = tuple(field.name for field in fields(DecodeStep) if field.name not in _SLOPES)


def decode_step(system: System, batch: Array, context: Array) -> DecodeStep:
    """Seconds of one decode step of `batch` running requests with `context` tokens each, on average.

    Source: the equations of the R1 cost model (roofline terms, launch latency per graph node, expert
    popularity, collectives), checked against reference values within 3 % (0.14 % on average). Under MTP a
    verify pass sends several tokens per request. Known error: 2-3 % within a fitted version, 8-12 %
    with a neighbouring version's profile; attention DP and EP carry rank_sync, known to a factor of two.
    """
    arch, _, table, engine = system.parts
    running = np.maximum(batch / table.pp, 1.0)  # requests of one pipeline micro-batch
    rank_batch = np.maximum(running / table.attn_dp, 1.0)
    queries = table.tokens_per_request
    tokens = running * queries
    rank_tokens = rank_batch * queries
    expert_tokens = running * (1.0 + MTP_NEW_EXPERT_SHARE * (queries - 1.0))
    layers, moe_layers = arch.num_hidden_layers, arch.moe_layers

    read = system.attention.context_cost(system, rank_batch)
    step = DecodeStep(
        attention_gemm=layers * _attention_gemm(system, rank_tokens),
        kv_attention=layers * engine.mla_floor_us * US + read.seconds(layers, context),
        experts=moe_layers * _experts(system, expert_tokens),
        shared_expert=moe_layers * _replicated_shared_expert(system, rank_tokens),
        gate=moe_layers * _router(system, np.where(table.a2a > 0, rank_tokens, tokens)),
        dense_mlp=arch.dense_layers * _dense_mlp(system, tokens),
        collectives=_collectives(system, tokens, rank_tokens),
        head=_head(system, tokens, rank_tokens),
        launch=engine.tau_us * US * (graph_nodes(arch) - table.fused_reduce * fused_nodes(arch)) * np.ones_like(tokens),
        token_work=layers * engine.token_us * US * rank_tokens,
        host=engine.host_ms * 1e-3 + np.where(table.pp > 1, table.pp * (PP_HOST_S + PP_HOP_S), 0.0),
        rank_sync=moe_layers * _rank_sync(table, engine),
        draft=_draft(system, running),
        eager=np.zeros_like(tokens),
        kv_slope=layers * read.slope_s,
        kv_beyond=layers * read.beyond_s,
        kv_knee=read.knee,
    )
    return _with_eager_floor(step, table, launch_floor_s(arch, engine.t_pf0_ms), rank_batch)


def _with_eager_floor(step: DecodeStep, table: ConfigTable, floor_s: float, rank_batch: Array) -> DecodeStep:
    """Beyond the captured graphs the CPU launches every kernel: the step takes at least that long."""
    beyond = (rank_batch > table.graph_max_bs) | (table.graphs == 0)
    missing = np.maximum(0.0, floor_s - step.total)
    return replace(step, eager=np.where(beyond, missing, 0.0))


def _attention_gemm(system: System, rank_tokens: Array) -> Array:
    """One layer's projections: fused q_a and kv_a (replicated), q_b, absorbed kv_b twice, o."""
    arch, machine, table, engine = system.parts
    rates, formats = Rates.of(machine, engine.eta_w), arch.weight_formats
    weight, out = kernel_of(formats.projections, arch, machine), kernel_of(formats.output, arch, machine)
    shard = table.attn_tp
    q_width = arch.num_attention_heads * arch.q_head_dim
    o_width = arch.num_attention_heads * arch.v_head_dim
    absorbed = gemm_s(rank_tokens, o_width / shard, arch.kv_lora_rank, bf16_kernel(machine), rates)
    projected = (
        gemm_s(rank_tokens, arch.qkv_a_width, arch.hidden_size, weight, rates)
        + gemm_s(rank_tokens, q_width / shard, arch.q_lora_rank, weight, rates)
        + 2.0 * absorbed
        + gemm_s(rank_tokens, arch.hidden_size, o_width / shard, out, rates)
    )
    return projected + system.attention.projections_s(system, rank_tokens) if arch.is_sparse else projected


def _experts(system: System, tokens: Array) -> Array:
    """One layer's routed experts, and under TP the shared one with them."""
    arch, machine, table, engine = system.parts
    independent = 1.0 + system.independence * np.maximum(tokens - 1.0, 0.0)
    distinct = distinct_experts(independent, arch.n_routed_experts, arch.num_experts_per_tok, system.sigma)
    experts = Experts(
        count=arch.n_routed_experts,
        top_k=arch.num_experts_per_tok,
        params=arch.expert_params,
        kernel=kernel_of(arch.weight_formats.routed, arch, machine),
        shared=arch.bytes_per_weight(arch.weight_formats.shared) / arch.gemm_weight_bytes,
    )
    rates = Rates.of(machine, engine.eta_w)
    narrow = ByWidth(shards=table.tp, row_bytes=_row_bytes(system), tile_rows=system.moe_tile_rows)
    by_width = moe_tp_s(tokens, distinct, experts, narrow, rates)
    by_number = moe_ep_s(tokens, distinct, experts, ByNumber(ranks=table.ep, deep_gemm=table.a2a), rates)
    return np.where(table.ep > 1, by_number, by_width)


def _router(system: System, tokens: Array) -> Array:
    """One layer's router, in BF16 and replicated; under DeepEP each rank routes its own tokens."""
    arch, machine, _, engine = system.parts
    rates = Rates.of(machine, engine.eta_w)
    return gemm_s(tokens, arch.n_routed_experts, arch.hidden_size, bf16_kernel(machine), rates)


def _row_bytes(system: System) -> Array:
    """Bytes a routed row moves apart from the weights: FP8 input, BF16 gate and up, FP8 product, BF16 output twice."""
    arch, table = system.arch, system.table
    width = arch.moe_intermediate_size / table.tp
    return arch.hidden_size * (1.0 + 2.0 + 2.0) + width * (2.0 * 2.0 + 1.0)


def _replicated_shared_expert(system: System, rank_tokens: Array) -> Array:
    """Under EP each rank streams its own copy of the shared expert for its own tokens."""
    arch, machine, table, engine = system.parts
    width = arch.n_shared_experts * arch.moe_intermediate_size
    weight, rates = kernel_of(arch.weight_formats.shared, arch, machine), Rates.of(machine, engine.eta_w)
    shard = np.where(table.a2a > 0, 1.0, table.tp)
    up = gemm_s(rank_tokens, 2.0 * width / shard, arch.hidden_size, weight, rates)
    down = gemm_s(rank_tokens, arch.hidden_size, width / shard, weight, rates)
    return np.where(table.ep > 1, up + down, 0.0)


def _dense_mlp(system: System, tokens: Array) -> Array:
    arch, machine, table, engine = system.parts
    width, weight = arch.intermediate_size / table.tp, kernel_of(arch.weight_formats.dense, arch, machine)
    rates = Rates.of(machine, engine.eta_w)
    up = gemm_s(tokens, 2.0 * width, arch.hidden_size, weight, rates)
    return up + gemm_s(tokens, arch.hidden_size, width, weight, rates)


def _collectives(system: System, tokens: Array, rank_tokens: Array) -> Array:
    """Two all-reduces a layer under TP; gather and scatter under attention DP; all-to-all under EP."""
    arch, machine, table = system.arch, system.machine, system.table
    hidden_bytes = 2.0 * arch.hidden_size
    across_us = system.engine.internode_us
    both = 2.0 * all_reduce_s(tokens * hidden_bytes, table.tp, system.nodes, machine, across_us)
    reduced = arch.num_hidden_layers * both * np.where(table.attn_dp > 1, DP_COLLECTIVE_SHARE, 1.0)
    attention_group_nodes = np.maximum(1.0, system.nodes / table.attn_dp)
    in_group = arch.num_hidden_layers * all_reduce_s(
        rank_tokens * hidden_bytes, table.attn_tp, attention_group_nodes, machine, across_us
    )
    exchanged = arch.moe_layers * dispatch_combine_s(rank_tokens, system.nodes) + in_group
    return np.where(table.a2a > 0, exchanged, reduced)


def _head(system: System, tokens: Array, rank_tokens: Array) -> Array:
    """LM head (sharded over TP, or over the attention group with --enable-dp-lm-head), logits gather, sampling."""
    arch, machine, table, engine = system.parts
    shard = np.where(table.dp_lm_head > 0, table.attn_tp, table.tp)
    rows = np.where(table.dp_lm_head > 0, rank_tokens, tokens)
    columns = arch.vocab_size / shard
    gather = np.where(shard > 1, 4.0 * rows * columns * (shard - 1.0) / shard / machine.nvlink_bytes_s, 0.0)
    rates = Rates.of(machine, engine.eta_w)
    return gemm_s(rows, columns, arch.hidden_size, bf16_kernel(machine), rates) + gather + SAMPLING_S


def _draft(system: System, running: Array) -> Array:
    """Speculation's cost in addition to the verify pass: draft layers, sampling, and the host's own work.

    Without overlap (spec v1) the GPU waits while Python walks the requests, one after the other.
    """
    engine, table = system.engine, system.table
    serial = 0.0 if system.mtp_overlap else engine.mtp_host_ms * 1e-3 + engine.mtp_request_us * US * running
    drafted = MTP_DRAFT_STEP_S * table.mtp_steps + engine.mtp_step_ms * 1e-3 + serial
    return np.where(table.mtp_steps > 0, drafted, 0.0)


def _rank_sync(table: ConfigTable, engine: EngineParameters) -> Array:
    """Per MoE layer: the time of dispatch, permutation and waiting for the slowest rank, beyond kernel sums.

    EP of one TP group adds zero: its ranks hold the same tokens and meet in the all-reduces anyway (8xB200, EP8).
    """
    doublings = np.log2(np.maximum(table.ep, 1.0)) / 3.0  # the constant is that of eight ranks
    expert_parallel = engine.ep_layer_us * doublings
    apart = np.where(table.ep > 1, expert_parallel, engine.dp_layer_us)
    return np.where((table.attn_dp > 1) | (table.a2a > 0), apart, 0.0) * US
