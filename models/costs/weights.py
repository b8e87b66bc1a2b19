"""Weights: GiB of every component on the fullest GPU, as each release of SGLang lays them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from packaging.version import Version

from models.architecture import ModelArchitecture
from models.layout import Array, ConfigTable
from models.machine import GIB, Machine
from models.quantization.formats import Kind
from models.version import at_least

# What a log says beyond the sum of the tensors: allocator blocks that are not full, modules loaded meanwhile.
# SGLang 0.4.5.post3 on 8xH200 TP8: 81.64 GiB logged, 81.49 summed; 0.4.6 on eight MI308X: 81.66.
LOADING_GIB = 0.15
# Releases that fused the shared expert with the routed ones did so for this many alone (deepseek_v2.py of 0.4.6).
FUSED_EXPERTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """GiB of weights on the fullest GPU, by component."""

    attn_sharded: Array
    attn_replicated: Array
    absorbed_kv_b: Array
    routed_experts: Array
    shared_experts: Array
    gate_and_norms: Array
    dense_mlp: Array
    embedding: Array
    lm_head: Array
    mtp_layer: Array
    loading: Array
    indexer: Array
    vision_tower: Array

    @property
    def total(self) -> Array:
        return sum((getattr(self, name) for name in self.__slots__), start=np.zeros_like(self.attn_sharded))


def weights(arch: ModelArchitecture, table: ConfigTable, version: Version, machine: Machine | None = None) -> Weights:
    """Weights per GPU of the fullest pipeline stage; an NVIDIA Hopper GPU where no machine is given.

    Replicated on every TP rank: q_a, kv_a, gate, norms. Sharded over the attention group: q_b, kv_b, o
    and the absorbed copies of kv_b. Sharded over TP: experts (by width or by number), dense MLP, head.
    Known error: 0.0 % against the log of SGLang 0.4.5.post3 on 8xH200 TP8, 0.1 % against one of attention DP 8
    with DeepEP.
    """
    layers = np.ceil(arch.num_hidden_layers / table.pp)
    moe_layers = np.minimum(layers, arch.moe_layers)
    dense_layers = np.where(table.pp > 1, 0.0, arch.dense_layers)
    formats = arch.weight_formats
    quantised = arch.gemm_weight_bytes / GIB
    projections, shared, dense = (
        arch.bytes_per_weight(form) / GIB for form in (formats.projections, formats.shared, formats.dense)
    )
    bf16 = 2.0 / GIB
    vocabulary = arch.embedding_params * bf16
    absorbed = _absorbed_bytes(arch, version, machine)
    shared_copies = _shared_expert_copies(arch, table, version, machine)
    return Weights(
        attn_sharded=layers * arch.attn_sharded_params * (arch.attn_sharded_weight_bytes / GIB) / table.attn_tp,
        attn_replicated=layers * arch.attn_replicated_params * projections,
        absorbed_kv_b=layers * arch.kv_b_params * absorbed / GIB / table.attn_tp,
        routed_experts=moe_layers
        * (arch.n_routed_experts + table.redundant_experts)
        * arch.expert_params
        * quantised
        / table.tp,
        shared_experts=moe_layers * arch.shared_expert_params * shared * shared_copies / table.tp,
        gate_and_norms=(moe_layers * arch.gate_params + layers * arch.layer_norm_params) * bf16,
        dense_mlp=dense_layers * arch.dense_mlp_params * dense / table.dense_tp,
        embedding=vocabulary / _embedding_shards(table, version),
        lm_head=vocabulary / _head_shards(table, version),
        mtp_layer=_mtp_layer(arch, table, shared_copies, absorbed),
        loading=np.full_like(table.tp, LOADING_GIB),
        indexer=(layers + (table.mtp_steps > 0)) * _indexer_bytes(arch) / GIB,
        vision_tower=np.full_like(table.tp, arch.vision_params * bf16),
    )


def _absorbed_bytes(arch: ModelArchitecture, version: Version, machine: Machine | None) -> float:
    """Bytes a weight of the absorbed copies of kv_b takes (deepseek_v2.py, post_load_weights).

    They stayed FP8 until 0.4.6.post2, and are BF16 since on CUDA; AMD's stay FP8, with one scale a tensor.
    """
    if arch.weight_formats.kv_b.kind is not Kind.FP8:
        return 2.0
    is_fp8 = not at_least(version, "0.4.6.post3") or (machine is not None and machine.is_amd)
    return 1.0 if is_fp8 else 2.0


def _indexer_bytes(arch: ModelArchitecture) -> float:
    """Bytes of one layer's indexer, whole on every rank: the weights of its heads and its norm are not quantised."""
    if not arch.is_sparse:
        return 0.0
    heads = arch.hidden_size * arch.index_n_heads
    return (arch.indexer_params - heads) * arch.bytes_per_weight(arch.weight_formats.indexer) + heads * 2.0


def _embedding_shards(table: ConfigTable, version: Version) -> Array:
    """Parts the input embedding is split into: under attention DP it was whole on every rank before 0.5.8."""
    whole = table.attn_dp > 1 if not at_least(version, "0.5.8") else np.zeros_like(table.tp, dtype=bool)
    return np.where(whole, 1.0, table.attn_tp)


def _head_shards(table: ConfigTable, version: Version) -> Array:
    """Parts the output head is split into: TP, or with --enable-dp-lm-head the attention group.

    0.4.3 and 0.4.4 replicated it under attention DP (deepseek_v2.py, ReplicatedLinear).
    """
    shards = np.where(table.dp_lm_head > 0, table.attn_tp, table.tp)
    replicated = table.attn_dp > 1 if not at_least(version, "0.4.4.post1") else np.zeros_like(table.tp, dtype=bool)
    return np.where(replicated, 1.0, shards)


def _shared_expert_copies(
    arch: ModelArchitecture, table: ConfigTable, version: Version, machine: Machine | None
) -> Array:
    """Whole copies of the shared expert over the TP group.

    Spanning all-to-all backends replicate it per rank; SGLang 0.4.4.post4 to 0.4.6.post5 fused `tp` copies of it
    with the routed experts on Hopper and newer, 0.4.6 to 0.4.6.post3 on AMD, too (deepseek_v2.py).
    """
    fuses = at_least(version, "0.4.4.post4") and not at_least(version, "0.4.7")
    if machine is not None and machine.is_amd:
        fuses = at_least(version, "0.4.6") and not at_least(version, "0.4.6.post4")
    elif machine is not None and not (machine.is_hopper or machine.is_blackwell):
        fuses = fuses and not at_least(version, "0.4.6")
    fuses = fuses and arch.n_routed_experts == FUSED_EXPERTS
    fused = np.where(table.shared_fusion > 0, table.tp, 1.0) if fuses else np.ones_like(table.tp)
    return np.where(table.a2a > 0, table.tp, fused)


def _mtp_layer(whole: ModelArchitecture, table: ConfigTable, shared_copies: Array, absorbed: float) -> Array:
    """GiB of the draft layer: one MoE layer and eh_proj (BF16, replicated); embedding and head are shared."""
    arch = replace(whole, weight_formats=whole.weight_formats.of_draft())
    quantised, shared = arch.gemm_weight_bytes, arch.bytes_per_weight(arch.weight_formats.shared)
    layer = (
        arch.attn_sharded_params * arch.attn_sharded_weight_bytes / table.attn_tp
        + arch.attn_replicated_params * arch.bytes_per_weight(arch.weight_formats.projections)
        + arch.kv_b_params * absorbed / table.attn_tp
        + (arch.n_routed_experts + table.redundant_experts) * arch.expert_params * quantised / table.tp
        + arch.shared_expert_params * shared * shared_copies / table.tp
        + (arch.gate_params + arch.layer_norm_params) * 2.0
        + arch.eh_proj_params * 2.0
    )
    return np.where(table.mtp_steps > 0, layer / GIB, 0.0)
