"""A server's memory beyond weights and KV cache: activations, CUDA graphs, buffers of an all-to-all backend.

Counted from the tensors that are alive at once, per token of the largest pass; checked against the few logs there are.
"""

from __future__ import annotations

import numpy as np
from packaging.version import Version

from models.architecture import ModelArchitecture
from models.layout import Array, ConfigTable
from models.machine import GIB, Machine
from models.version import at_least

BF16 = 2.0
# Workspaces of attention and GEMM kernels: SGLang's own constant (memory_hook.py: 512 MiB).
WORKSPACE_GIB = 0.5
# Residual stream and the normed copy of it, alive through a layer.
RESIDUAL_COPIES = 2.0
# The Triton MoE kernel works through its tokens in parts of this many (fused_moe.py, CHUNK_SIZE).
MOE_PART_TOKENS = 65_536.0
# Tokens a rank receives from a normal dispatch over its even share: experts are not equally popular.
DISPATCH_IMBALANCE = 1.25
# DeepEP's low-latency kernels give every expert room for this many tokens of every rank (environ.py), or for as many
# as SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK says: a launch that decodes more must raise it.
LOW_LATENCY_TOKENS = 128.0
# Its buffers lie outside PyTorch: a send and a receive side, each twice, of a BF16 message a slot
# (get_low_latency_rdma_size_hint). For normal mode what SGLang itself holds back (memory_hook.py: 1,024 MiB).
LOW_LATENCY_SIDES = 4.0
MESSAGE_HEAD_BYTES = 16.0
NORMAL_BUFFER_GIB = 1.0
# Captured decode graphs of SGLang 0.4.5 on H200: 3.19 GiB up to batch 160, 6.34 GiB up to 256 (logs).
GRAPHS_04 = ((0.0, 0.0), (160.0, 3.19), (256.0, 6.34))
# From 0.5 on the first capture with FA3 takes 5 to 6 GiB whatever its batch (sglang issue 16143, 0.5.6 and 0.5.7); with
# another backend what the log of batch 160 leaves. SGLang's own 2 MiB a batch size come on top (memory_hook.py).
FIRST_CAPTURE_FA3_GIB = 5.0
FIRST_CAPTURE_GIB = 2.9
GRAPH_MIB_PER_BS = 2.0
# SGLang's own reserve for the prefill graphs of an MLA model (memory_hook.py).
PREFILL_GRAPH_GIB = 1.5
# --enable-symm-mem preallocates this much unless SGLANG_SYMM_MEM_PREALLOC_GB_SIZE says otherwise.
SYMM_MEM_GIB = 4.0


def activations_gib(arch: ModelArchitecture, table: ConfigTable, kv_tokens_per_rank: Array) -> Array:
    """GiB of the largest pass outside graphs: a prefill chunk; on a decode-only server, its largest batch.

    Attention sees the tokens of its rank. Without an all-to-all backend the MoE layer sees those of all ranks;
    with one it sees what its rank receives. Where an FP8 KV cache is converted, attention holds one layer in BF16.
    """
    decode_tokens = np.maximum(1.0, np.floor(table.max_running / table.attn_dp)) * table.tokens_per_request
    eager_decode = np.where(table.decode_graphs > 0, np.minimum(table.graph_max_bs, decode_tokens), decode_tokens)
    own = np.where(table.prefills > 0, table.chunk / table.attn_dp, eager_decode)
    converted = table.converted_kv * kv_tokens_per_rank * arch.latent_width * BF16
    attention = own * _attention_bytes(arch, table) + converted
    experts = _expert_bytes(arch, table, own)
    residual = RESIDUAL_COPIES * own * arch.hidden_size * BF16
    return WORKSPACE_GIB + (residual + np.maximum(attention, experts)) / GIB


def _attention_bytes(arch: ModelArchitecture, table: ConfigTable) -> Array:
    """Bytes a token holds at the peak of MLA prefill: q twice, kv_b's output, k, v and the output of its heads."""
    heads = arch.num_attention_heads / table.attn_tp
    head = 3 * (arch.qk_nope_head_dim + arch.qk_rope_head_dim) + arch.qk_nope_head_dim + 3 * arch.v_head_dim
    down = arch.q_lora_rank + arch.kv_lora_rank + arch.qk_rope_head_dim
    return BF16 * (heads * head + 2 * down + arch.hidden_size)


def _expert_bytes(arch: ModelArchitecture, table: ConfigTable, own: Array, *, captured: bool = False) -> Array:
    """Bytes at the peak of an MoE layer, for `own` tokens of each rank; captured decode takes low-latency kernels."""
    experts_per_token = float(arch.num_experts_per_tok)
    out_bytes = arch.hidden_size * BF16
    inner_bytes = 3 * arch.moe_intermediate_size * BF16  # gate, up and their product
    gathered = own * table.attn_dp
    worked = np.minimum(gathered, MOE_PART_TOKENS)
    split = table.tp / np.maximum(1.0, table.ep)
    local = experts_per_token + arch.n_shared_experts
    without = 2 * gathered * out_bytes + worked * local * (out_bytes + inner_bytes / split)
    spread = table.tp * (1.0 - (1.0 - 1.0 / table.tp) ** experts_per_token)  # ranks a token goes to
    dispatched = (
        own * DISPATCH_IMBALANCE * (spread * out_bytes / 2 + experts_per_token * (1.5 * out_bytes + inner_bytes))
    )
    masked = _low_latency_rows(arch, table) * (1.5 * out_bytes + inner_bytes)
    eager = np.where(table.prefills > 0, dispatched, masked)
    return np.where(table.a2a > 0, masked if captured else eager, without)


def _low_latency_rows(arch: ModelArchitecture, table: ConfigTable) -> Array:
    """Slots of the low-latency layout: every expert's room for the tokens of a rank, over all experts."""
    running = np.maximum(1.0, np.floor(table.max_running / table.attn_dp))
    tokens = np.minimum(running, table.graph_max_bs) * table.tokens_per_request
    return (arch.n_routed_experts + table.redundant_experts) * np.maximum(LOW_LATENCY_TOKENS, tokens)


def graphs_gib(arch: ModelArchitecture, table: ConfigTable, version: Version, machine: Machine) -> Array:
    """GiB of CUDA graphs and of symmetric memory.

    Two logs say it for 0.4. From 0.5 on: the first capture, each further batch size, the MoE activations of the largest
    batch under attention DP, and under MTP the page tables of verification and of every draft step. The prefill
    graphs' part is SGLang's own reserve.
    """
    decode_on = table.graphs * table.decode_graphs
    symmetric = table.symm_mem * SYMM_MEM_GIB
    if not at_least(version, "0.5.0"):
        batch, gib = zip(*GRAPHS_04, strict=True)
        slope = (gib[-1] - gib[-2]) / (batch[-1] - batch[-2])
        beyond = np.maximum(0.0, table.graph_max_bs - batch[-1]) * slope
        return decode_on * (np.interp(table.graph_max_bs, batch, gib) + beyond) + symmetric
    fa3 = FIRST_CAPTURE_FA3_GIB if machine.is_hopper else FIRST_CAPTURE_GIB
    first = np.where(table.default_attention > 0, fa3, FIRST_CAPTURE_GIB)
    largest = table.graph_max_bs * table.tokens_per_request
    captured_experts = _expert_bytes(arch, table, largest, captured=True)
    experts = np.where(table.attn_dp > 1, captured_experts, 0.0)
    drafts = np.where(table.mtp_steps > 0, table.mtp_steps + 1.0, 0.0)
    tables = drafts * table.graph_max_bs * table.context_length * 4.0
    decode = first + GRAPH_MIB_PER_BS * table.graph_max_bs / 1024 + (experts + tables) / GIB
    prefill_on = table.graphs * table.prefill_graphs * float(at_least(version, "0.5.10"))
    return decode_on * decode + prefill_on * PREFILL_GRAPH_GIB + symmetric


def dispatch_buffers_gib(arch: ModelArchitecture, table: ConfigTable) -> Array:
    """GiB of an all-to-all backend's own buffers, by the kernels its phases use."""
    normal = table.prefills * (table.a2a_low_latency_only < 1) * NORMAL_BUFFER_GIB
    message = arch.hidden_size * BF16 + MESSAGE_HEAD_BYTES
    slots = LOW_LATENCY_SIDES * _low_latency_rows(arch, table) * message / GIB
    low_latency = table.decodes * (table.a2a_normal_only < 1) * slots
    return np.where(table.a2a > 0, normal + low_latency, 0.0)
