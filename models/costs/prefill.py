"""One prefill pass: `prompts` prompts of `new` tokens each behind a cached prefix."""

from __future__ import annotations

import numpy as np

from models.architecture import ModelArchitecture
from models.costs.kernels import (
    DENSE_CEILING,
    DENSE_FRACTION,
    MOE_CEILING,
    MOE_FRACTION,
    all_reduce_s,
    distinct_experts,
)
from models.costs.launches import launch_floor_s
from models.costs.system import System
from models.costs.weight_kernels import kernel_of
from models.layout import Array
from models.machine import Machine
from models.quantization.formats import WeightFormat

# Passes over the hidden states per layer outside the GEMMs (norms, quantisation, rotary, residuals).
ELEMENT_PASSES = 10.0
# Share of NVLink that DeepEP's normal mode reaches (153-158 of 160 GB/s on H800; 0.35 of 450 on H200).
EP_PREFILL_LINK_SHARE = 0.35
# Attention DP replaces two all-reduces by a gather and a scatter.
DP_COLLECTIVE_SHARE = 0.6


def prefill_s(system: System, prompts: Array, new: Array, prefix: Array) -> Array:
    """Seconds of one prefill pass of `prompts` prompts, `new` tokens each, `prefix` cached before each.

    GPU work and the CPU's launch floor combine as a quartic mean. Under attention DP a prompt stays on its
    rank: fewer prompts than ranks leave ranks idle. Known error: TTFT of 8xH200 TP8 within 15 %; versions
    before 0.5.4 are 25-30 % slower than this, H20 28 % faster with optimised builds.
    """
    share = rank_share(system, prompts)
    pairs = prompts * (new * new / 2.0 + new * prefix)
    return with_launch_floor(
        system, token_work_s(system, prompts * new, share) + _pairs_s(system, prompts, new, pairs) * share
    )


def rank_share(system: System, prompts: Array) -> Array:
    """Share of a pass's prompts that the busiest attention-DP rank holds."""
    return np.maximum(1.0 / system.table.attn_dp, 1.0 / np.maximum(prompts, 1.0))


def with_launch_floor(system: System, gpu_s: Array) -> Array:
    """Combine GPU work with the time the CPU needs to launch an eager pass: the larger one wins, nearly."""
    floor = launch_floor_s(system.arch, system.engine.t_pf0_ms)
    return (gpu_s**4 + floor**4) ** 0.25


def token_work_s(system: System, tokens: Array, share: Array) -> Array:
    """GPU seconds of everything that grows with the tokens of a pass; `share` of them on the busiest rank."""
    arch, machine, _, _ = system.parts
    rank_tokens = tokens * share
    return (
        arch.num_hidden_layers * _projections(system, rank_tokens)
        + arch.moe_layers * _experts(system, tokens)
        + arch.dense_layers * _dense(system, tokens)
        + arch.num_hidden_layers * _elements(arch, machine, tokens)
        + _collectives(system, tokens, rank_tokens)
    )


def pair_s(system: System) -> Array:
    """GPU seconds of all layers' attention per pair of a new token and one it attends to."""
    return system.attention.pair_s(system)


def scan_s(system: System) -> Array:
    """GPU seconds of all layers per pair of a new token and one before it, attended to or not (0: dense attention)."""
    return system.attention.scan_s(system)


def _pairs_s(system: System, prompts: Array, new: Array, pairs: Array) -> Array:
    if not system.arch.is_sparse:
        return pair_s(system) * pairs
    return pair_s(system) * system.attention.attended(prompts, prompts * new, pairs) + scan_s(system) * pairs


def _projections(system: System, rank_tokens: Array) -> Array:
    """One layer's attention projections on one rank."""
    arch, _, table, _ = system.parts
    replicated = arch.attn_replicated_params + arch.indexer_params
    params = replicated + (arch.attn_sharded_params - arch.o_params) / table.attn_tp
    formats = arch.weight_formats
    if formats.projections == formats.output:
        params = replicated + arch.attn_sharded_params / table.attn_tp
        return 2.0 * rank_tokens * params / _dense_rate(system, formats.projections)
    out = 2.0 * rank_tokens * arch.o_params / table.attn_tp / _dense_rate(system, formats.output)
    return 2.0 * rank_tokens * params / _dense_rate(system, formats.projections) + out


def _dense_rate(system: System, form: WeightFormat) -> float | Array:
    kernel = kernel_of(form, system.arch, system.machine)
    return kernel.reached(DENSE_FRACTION, DENSE_CEILING, system.engine.eta_pf)


def _experts(system: System, tokens: Array) -> Array:
    """Routed and shared experts of one layer: arithmetic, but never faster than streaming them once."""
    arch, machine, table, engine = system.parts
    kernel = kernel_of(arch.weight_formats.routed, arch, machine)
    rate = kernel.reached(MOE_FRACTION, MOE_CEILING, engine.eta_pf)
    rows = (arch.num_experts_per_tok + arch.n_shared_experts) * tokens
    arithmetic = _busiest_rank(system) * 2.0 * rows * arch.expert_params / table.tp / rate
    distinct = distinct_experts(tokens, arch.n_routed_experts, arch.num_experts_per_tok, system.sigma)
    streamed = (distinct + 1.0) * arch.expert_params * kernel.weight_bytes / table.tp
    return np.maximum(arithmetic, streamed / (engine.eta_w * machine.hbm_bytes_s * kernel.stream_share))


def _busiest_rank(system: System) -> Array:
    """Rows of the busiest EP rank over the mean, for prompts of random tokens that nothing rebalances.

    Fitted at eight ranks (`ep_prefill`) and taken to grow with the doublings of them; all published runs with an
    all-to-all backend rebalance. Text is not known to load ranks so unevenly: 1 there.
    """
    if system.independence >= 1.0:
        return np.ones_like(system.table.ep)
    uneven = (system.engine.ep_prefill - 1.0) * np.log2(system.table.ep) / 3.0
    return 1.0 + np.where(system.table.balanced_experts > 0, 0.0, uneven)


def _dense(system: System, tokens: Array) -> Array:
    arch, table = system.arch, system.table
    return 2.0 * tokens * arch.dense_mlp_params / table.tp / _dense_rate(system, arch.weight_formats.dense)


def _elements(arch: ModelArchitecture, machine: Machine, tokens: Array) -> Array:
    return ELEMENT_PASSES * tokens * 2.0 * arch.hidden_size / machine.hbm_bytes_s


def _collectives(system: System, tokens: Array, rank_tokens: Array) -> Array:
    """Two all-reduces a layer; gather and scatter under attention DP; dispatch and combine under EP."""
    arch, machine, table = system.arch, system.machine, system.table
    hidden_bytes = 2.0 * arch.hidden_size
    reduced = 2.0 * all_reduce_s(tokens * hidden_bytes, table.tp, system.nodes, machine, system.engine.internode_us)
    reduced = reduced * np.where(table.attn_dp > 1, DP_COLLECTIVE_SHARE, 1.0)
    copies = np.minimum(arch.num_experts_per_tok, table.ep)
    link = np.where(system.nodes > 1, machine.network_bytes_s, EP_PREFILL_LINK_SHARE * machine.nvlink_bytes_s)
    exchanged = rank_tokens * arch.hidden_size * copies * (1.0 + 2.0) / link  # FP8 out, BF16 back
    return arch.num_hidden_layers * np.where(table.a2a > 0, exchanged, reduced)
