"""MemoryLedger: every GiB of one GPU by owner, and the KV tokens that are left. It adds up to the card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from packaging.version import Version

from models.architecture import ModelArchitecture
from models.costs.weights import Weights, weights
from models.costs.working_memory import activations_gib, dispatch_buffers_gib, graphs_gib
from models.layout import Array, ConfigTable
from models.machine import GIB, Machine
from models.version import at_least

# CUDA context (1.2 GiB) plus NCCL and torch.distributed buffers (1.5-2.0 GiB), from SGLang logs on 8xH200:
# 140.40 GiB card, 137.24 GiB free before the weights.
CONTEXT_AND_NCCL_04_GIB = 3.1
# No log of 0.5 says it: fitted to where 64 clients of 8k/1k begin to queue on 8xH200 (median TTFT of 690-780 ms in
# four releases), which 2.5 GiB explains and 3.1 does not.
CONTEXT_AND_NCCL_GIB = 2.5
REQUEST_TABLE_ENTRY_BYTES = 4
# What should be left per GPU after weights, KV pool and graphs: SGLang's tuning guide calls 5-8 GiB good.
GOOD_FREE_GIB = 5.0
# For a model whose ledger no log has confirmed a rank's pool must hold one request of its own context, and the ledger's
# error (share of the card) on top. Moonshot names 16 GPUs of H200 the smallest unit for Kimi K2 in FP8 with its context
# of 128k (deployment guide); the ledger alone would put it on eight, with some 16,000 tokens.
LEDGER_ERROR = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The ledger of many configurations: GiB per GPU of the fullest rank, KV tokens per DP rank.

    `kv_cell` is the GiB one token takes on a rank, `buffers` what an all-to-all backend keeps for itself;
    `least_tokens` are what a rank must hold for the launch to count as fitting, beside the workload's longest request.
    """

    card: Array
    context: Array
    weights: Weights
    request_table: Array
    graphs: Array
    activations: Array
    buffers: Array
    kv_pool: Array
    free: Array
    kv_cell: Array
    kv_tokens_per_rank: Array
    kv_tokens: Array
    least_tokens: Array

    def needed(self, longest_request: float) -> Array:
        """Tokens a rank must hold for the launch to count as fitting."""
        return np.maximum(longest_request, self.least_tokens)

    def shortage(self, longest_request: float, spare_gib: float) -> Array:
        """GiB each GPU lacks, at any memory fraction, to hold everything, one longest request (tokens) and `spare_gib`;
        negative where there is room.
        """
        fixed = self.context + self.weights.total + self.request_table + self.graphs + self.activations + self.buffers
        return fixed + self.kv_cell * self.needed(longest_request) + spare_gib - self.card


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

        Ranks do not share: one rank's free tokens cannot hold another's request.
        """
        ranks = max(1, round(self.kv_tokens / self.kv_tokens_per_rank)) if self.kv_tokens_per_rank else 1
        return min(most_running, int(self.kv_tokens_per_rank // max(1.0, tokens_each)) * ranks)


def kv_cell_bytes(arch: ModelArchitecture, table: ConfigTable) -> Array:
    """Bytes one token takes on one rank: every layer of the stage, and the draft layer under MTP."""
    layers = np.ceil(arch.num_hidden_layers / table.pp) + (table.mtp_steps > 0)
    if not arch.is_sparse:
        return layers * arch.latent_width * table.kv_element_bytes
    each = np.where(table.kv_element_bytes < 2.0, arch.cache_bytes(1.0), arch.cache_bytes(2.0))
    return layers * each


def memory(
    arch: ModelArchitecture,
    machine: Machine,
    table: ConfigTable,
    version: Version,
    free_before_load_gib: float | None = None,
) -> Memory:
    """Fill the ledger of every configuration.

    SGLang sizes the pool as `free_after_load - free_before_load x (1 - mem_fraction_static)`; the rest,
    `free_before_load x (1 - mem_fraction_static)`, must hold the request table, graphs, buffers and activations.
    Of the pool no more is taken than --max-total-tokens allows.
    """
    ones = np.ones_like(table.tp)
    card = machine.memory_gib * ones
    context = CONTEXT_AND_NCCL_GIB if at_least(version, "0.5.0") else CONTEXT_AND_NCCL_04_GIB
    before = card - context if free_before_load_gib is None else free_before_load_gib * ones
    parts = weights(arch, table, version, machine)
    slack = before * (1.0 - table.mem_fraction)
    pool = before - parts.total - slack
    per_rank_requests = np.maximum(1.0, np.floor(table.max_running / table.attn_dp))
    request_table = (per_rank_requests + 1) * table.context_length * REQUEST_TABLE_ENTRY_BYTES / GIB
    graphs = graphs_gib(arch, table, version, machine)
    buffers = dispatch_buffers_gib(arch, table)
    cell = kv_cell_bytes(arch, table) / GIB
    tokens = np.minimum(np.floor(np.maximum(0.0, pool) / cell), table.max_total_tokens)
    activations = activations_gib(arch, table, tokens)
    kv_pool = np.where(tokens < table.max_total_tokens, pool, tokens * cell)
    return Memory(
        card=card,
        context=card - before,
        weights=parts,
        request_table=request_table,
        graphs=graphs,
        activations=activations,
        buffers=buffers,
        kv_pool=kv_pool,
        free=slack + pool - kv_pool - request_table - graphs - activations - buffers,
        kv_cell=cell,
        kv_tokens_per_rank=tokens,
        kv_tokens=tokens * table.attn_dp,
        least_tokens=table.context_length + LEDGER_ERROR * card / cell if arch.is_unconfirmed else 0.0 * ones,
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
        **({"all-to-all buffers": at(memory.buffers)} if at(memory.buffers) > 0 else {}),
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
