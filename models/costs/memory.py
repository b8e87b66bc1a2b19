"""MemoryLedger: every GiB of one GPU by owner, and the KV tokens that are left. It adds up to the card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from packaging.version import Version

from models.architecture import ModelArchitecture
from models.layout import Array, ConfigTable
from models.machine import GIB, Machine
from models.version import at_least

# CUDA context (1.2 GiB) plus NCCL and torch.distributed buffers (1.5-2.0 GiB), from SGLang logs on 8xH200:
# 140.40 GiB card, 137.24 GiB free before the weights.
CONTEXT_AND_NCCL_04_GIB = 3.1
# No log of 0.5 says it: fitted to where 64 clients of 8k/1k begin to queue on 8xH200 (median TTFT of 690-780 ms in
# four releases), which 2.5 GiB explains and 3.1 does not.
CONTEXT_AND_NCCL_GIB = 2.5
# Captured decode graphs of SGLang 0.4.5 on H200: 3.19 GiB up to batch 160, 6.34 GiB up to 256 (logs).
GRAPHS_04 = ((0.0, 0.0), (160.0, 3.19), (256.0, 6.34))
# SGLang 0.5's own reserve for graphs: 2 MiB per captured batch size of decode, 3 more per batch and
# attention-DP rank (1.5 more of those above 300), 1.5 GiB for the prefill graph of an MLA model.
GRAPH_MIB_PER_BS = 2.0
GRAPH_MIB_PER_BS_DP = 3.0
GRAPH_MIB_PER_BS_DP_LARGE = 1.5
PREFILL_GRAPH_MIB = 1536.0
# Peak activations of a prefill chunk. SGLang reserves 1.5 MiB a token; servers that ran with far less
# (32,768-token chunks at fraction 0.82 on H200) bound the true need to about 0.6.
ACTIVATION_MIB_PER_TOKEN = 0.5
ACTIVATION_FLOOR_GIB = 1.0
REQUEST_TABLE_ENTRY_BYTES = 4
# --enable-symm-mem preallocates this much unless SGLANG_SYMM_MEM_PREALLOC_GB_SIZE says otherwise.
SYMM_MEM_GIB = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a launch may say beyond ConfigTable's columns and that takes memory; one value for the whole table.

    `dense_tp` is the TP degree of the dense layers (moe_dense_tp_size) or None for tp_size.
    """

    dense_tp: int | None = None
    redundant_experts: int = 0
    decode_graphs: bool = True
    prefill_graphs: bool = True
    symm_mem: bool = False


PLAIN = Extras()


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

    @property
    def total(self) -> Array:
        return sum((getattr(self, name) for name in self.__slots__), start=np.zeros_like(self.attn_sharded))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The ledger of many configurations: GiB per GPU of the fullest rank, KV tokens per DP rank.

    `kv_cell` is the GiB one token takes on a rank.
    """

    card: Array
    context: Array
    weights: Weights
    request_table: Array
    graphs: Array
    activations: Array
    kv_pool: Array
    free: Array
    kv_cell: Array
    kv_tokens_per_rank: Array
    kv_tokens: Array

    def shortage(self, longest_request: float, spare_gib: float) -> Array:
        """GiB each GPU lacks, whatever the memory fraction, to hold everything, one longest request (tokens)
        and `spare_gib`; negative where there is room."""
        fixed = self.context + self.weights.total + self.request_table + self.graphs + self.activations
        return fixed + self.kv_cell * longest_request + spare_gib - self.card


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLedger:
    """One configuration's ledger. `per_gpu_gib` sums to `card_gib`; `headroom_gib` is the KV pool of
    all GPUs together: the memory left for KV cache after everything else has its share."""

    per_gpu_gib: dict[str, float]
    card_gib: float
    headroom_gib: float
    kv_tokens_per_rank: int
    kv_tokens: int
    free_gib: float
    gpus_per_node: int = 1

    @property
    def weights_gib(self) -> float:
        """All weights of one GPU."""
        return sum(gib for owner, gib in self.per_gpu_gib.items() if owner.startswith("weights"))

    def per_node_gib(self) -> dict[str, float]:
        """Return the same owners for all GPUs of one node."""
        return {owner: gib * self.gpus_per_node for owner, gib in self.per_gpu_gib.items()}

    def requests(self, tokens_each: float, most_running: int) -> int:
        """Return how many requests of `tokens_each` (input and output) the KV pools hold at once, over all ranks.

        Ranks share nothing: what is left over on one holds no request of another.
        """
        ranks = max(1, round(self.kv_tokens / self.kv_tokens_per_rank)) if self.kv_tokens_per_rank else 1
        return min(most_running, int(self.kv_tokens_per_rank // max(1.0, tokens_each)) * ranks)


def weights(arch: ModelArchitecture, table: ConfigTable, version: Version, extras: Extras = PLAIN) -> Weights:
    """Weights per GPU of the fullest pipeline stage.

    Replicated on every TP rank: q_a, kv_a, gate, norms. Sharded over the attention group: q_b, kv_b, o
    and the absorbed copies of kv_b. Sharded over TP: experts (by width or by number), dense MLP, head.
    Known error: 0.04 % against the log of SGLang 0.4.5.post3 on 8xH200 TP8.
    """
    layers = np.ceil(arch.num_hidden_layers / table.pp)
    moe_layers = np.minimum(layers, arch.moe_layers)
    dense_layers = np.where(table.pp > 1, 0.0, arch.dense_layers)
    quantised = arch.gemm_weight_bytes / GIB
    bf16 = 2.0 / GIB
    absorbed_bytes = 2.0 if at_least(version, "0.4.4") or not arch.is_fp8 else 1.0
    shared_copies = _shared_expert_copies(table, version)
    return Weights(
        attn_sharded=layers * arch.attn_sharded_params * quantised / table.attn_tp,
        attn_replicated=layers * arch.attn_replicated_params * quantised,
        absorbed_kv_b=layers * arch.kv_b_params * absorbed_bytes / GIB / table.attn_tp,
        routed_experts=moe_layers
        * (arch.n_routed_experts + extras.redundant_experts)
        * arch.expert_params
        * quantised
        / table.tp,
        shared_experts=moe_layers * arch.shared_expert_params * quantised * shared_copies / table.tp,
        gate_and_norms=(moe_layers * arch.gate_params + layers * arch.layer_norm_params) * bf16,
        dense_mlp=dense_layers
        * arch.dense_mlp_params
        * quantised
        / (table.tp if extras.dense_tp is None else extras.dense_tp),
        embedding=arch.embedding_params * bf16 / table.attn_tp,
        lm_head=arch.embedding_params * bf16 / np.where(table.dp_lm_head > 0, table.attn_tp, table.tp),
        mtp_layer=_mtp_layer(arch, table, shared_copies),
    )


def _shared_expert_copies(table: ConfigTable, version: Version) -> Array:
    """Whole copies of the shared expert over the TP group.

    Spanning all-to-all backends replicate it per rank; SGLang 0.4.5.post1 to 0.4.6 fused `tp` copies of it
    with the routed experts.
    """
    fused = at_least(version, "0.4.5") and not at_least(version, "0.4.7")
    copies = table.tp if fused else np.ones_like(table.tp)
    return np.where(table.a2a > 0, table.tp, copies)


def _mtp_layer(arch: ModelArchitecture, table: ConfigTable, shared_copies: Array) -> Array:
    """GiB of the draft layer: one MoE layer and eh_proj (BF16, replicated); embedding and head are shared."""
    quantised = arch.gemm_weight_bytes
    layer = (
        arch.attn_sharded_params * quantised / table.attn_tp
        + arch.attn_replicated_params * quantised
        + arch.kv_b_params * 2.0 / table.attn_tp
        + arch.n_routed_experts * arch.expert_params * quantised / table.tp
        + arch.shared_expert_params * quantised * shared_copies / table.tp
        + (arch.gate_params + arch.layer_norm_params) * 2.0
        + arch.eh_proj_params * 2.0
    )
    return np.where(table.mtp_steps > 0, layer / GIB, 0.0)


def kv_cell_bytes(arch: ModelArchitecture, table: ConfigTable) -> Array:
    """Bytes one token takes on one rank: every layer of the stage, and the draft layer under MTP."""
    layers = np.ceil(arch.num_hidden_layers / table.pp) + (table.mtp_steps > 0)
    return layers * arch.latent_width * table.kv_element_bytes


def graph_gib(table: ConfigTable, version: Version, extras: Extras = PLAIN) -> Array:
    """CUDA graphs per GPU: measured for 0.4 (two logs), SGLang's own reserve for 0.5.

    Decode graphs cost by the largest size captured, prefill graphs a fixed sum with MLA.
    """
    decode_on = table.graphs * float(extras.decode_graphs)
    if not at_least(version, "0.5.0"):
        batch, gib = zip(*GRAPHS_04, strict=True)
        slope = (gib[-1] - gib[-2]) / (batch[-1] - batch[-2])
        beyond = np.maximum(0.0, table.graph_max_bs - batch[-1]) * slope
        return decode_on * (np.interp(table.graph_max_bs, batch, gib) + beyond)
    dp_ranks = np.where(table.attn_dp > 1, table.attn_dp, 0.0)
    decode_mib = table.graph_max_bs * (
        GRAPH_MIB_PER_BS
        + GRAPH_MIB_PER_BS_DP * dp_ranks
        + GRAPH_MIB_PER_BS_DP_LARGE * dp_ranks * (table.graph_max_bs > 300)
    )
    prefill_on = table.graphs * float(extras.prefill_graphs)
    return (decode_on * decode_mib + prefill_on * PREFILL_GRAPH_MIB) / 1024


def memory(
    arch: ModelArchitecture,
    machine: Machine,
    table: ConfigTable,
    version: Version,
    free_before_load_gib: float | None = None,
    extras: Extras = PLAIN,
) -> Memory:
    """Fill the ledger of every configuration.

    SGLang sizes the pool as `free_after_load - free_before_load x (1 - mem_fraction_static)`; the rest,
    `free_before_load x (1 - mem_fraction_static)`, must hold the request table, graphs and activations. Of the pool
    no more is taken than --max-total-tokens allows.
    """
    one = np.ones_like(table.tp)
    card = machine.memory_gib * one
    context = CONTEXT_AND_NCCL_GIB if at_least(version, "0.5.0") else CONTEXT_AND_NCCL_04_GIB
    before = card - context if free_before_load_gib is None else free_before_load_gib * one
    parts = weights(arch, table, version, extras)
    slack = before * (1.0 - table.mem_fraction)
    pool = before - parts.total - slack
    per_rank_requests = np.maximum(1.0, np.floor(table.max_running / table.attn_dp))
    request_table = (per_rank_requests + 1) * table.context_length * REQUEST_TABLE_ENTRY_BYTES / GIB
    graphs = graph_gib(table, version, extras) + (SYMM_MEM_GIB if extras.symm_mem else 0.0)
    activations = np.maximum(ACTIVATION_FLOOR_GIB, table.chunk * ACTIVATION_MIB_PER_TOKEN / 1024)
    cell = kv_cell_bytes(arch, table) / GIB
    tokens = np.minimum(np.floor(np.maximum(0.0, pool) / cell), table.max_total_tokens)
    held = np.where(tokens < table.max_total_tokens, pool, tokens * cell)
    return Memory(
        card=card,
        context=card - before,
        weights=parts,
        request_table=request_table,
        graphs=graphs,
        activations=activations,
        kv_pool=held,
        free=slack + pool - held - request_table - graphs - activations,
        kv_cell=cell,
        kv_tokens_per_rank=tokens,
        kv_tokens=tokens * table.attn_dp,
    )


def ledger_of(memory: Memory, table: ConfigTable, index: int) -> MemoryLedger:
    """Return one row of `memory` as a ledger a person can read."""

    def at(values: Array) -> float:
        return float(values[index])

    parts = {f"weights: {name}": at(getattr(memory.weights, name)) for name in Weights.__slots__}
    per_gpu = {
        "context and NCCL": at(memory.context),
        **{name: gib for name, gib in parts.items() if gib > 0},
        "KV pool": at(memory.kv_pool),
        "request table": at(memory.request_table),
        "CUDA graphs": at(memory.graphs),
        "activations": at(memory.activations),
        "free": at(memory.free),
    }
    return MemoryLedger(
        per_gpu_gib=per_gpu,
        card_gib=at(memory.card),
        headroom_gib=at(memory.kv_pool) * float(table.gpus[index]),
        kv_tokens_per_rank=int(at(memory.kv_tokens_per_rank)),
        kv_tokens=int(at(memory.kv_tokens)),
        free_gib=at(memory.free),
        gpus_per_node=int(float(table.gpus[index]) // max(1.0, float(table.nodes[index]))),
    )


def bounded(filled: Memory, most: Array | float) -> Memory:
    """Return the ledger with no more KV tokens per rank than `most`."""
    per_rank = np.minimum(filled.kv_tokens_per_rank, most)
    ranks = filled.kv_tokens / np.maximum(filled.kv_tokens_per_rank, 1.0)
    return replace(filled, kv_tokens_per_rank=per_rank, kv_tokens=per_rank * ranks)
