"""Attention over the context, one protocol, two implementations: MLA over all of it, and over what an indexer chose.

"Step times are linear in the context" is a property of dense attention alone (`ContextCost.is_linear`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.architecture import ModelArchitecture
from models.costs.kernels import (
    PREFILL_ATTENTION_CEILING,
    PREFILL_ATTENTION_FRACTION,
    LatentCache,
    Rates,
    gemm_s,
    mla_seconds_per_context_token,
)
from models.costs.weight_kernels import bf16_kernel, kernel_of, matrix_rate
from models.layout import Array

if TYPE_CHECKING:
    from models.costs.system import System

# Share of the dense kernel's streaming rate that gathering chosen tokens reaches: each is 576 values in a row, pages
# are not (assumed; nothing is published apart).
GATHER_SHARE = 0.6
# Share of peak that the indexer's FP8 logits reach (assumed: DeepGEMM's mqa_logits, as its other small products).
INDEX_FRACTION = 0.4
# Kernels the indexer adds to a layer: projections, norm, rotary, quantisation, logits, top-k (counted in SGLang's
# nsa_indexer.py).
INDEX_NODES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextCost:
    """Seconds one layer's attention takes per token of context: `slope_s` up to `knee` tokens, `beyond_s` after it."""

    slope_s: Array
    beyond_s: Array
    knee: float = np.inf

    @property
    def is_linear(self) -> bool:
        return not np.isfinite(self.knee)

    def seconds(self, layers: int, context: Array) -> Array:
        """Seconds of `layers` layers at a context."""
        if self.is_linear:
            return layers * self.slope_s * context
        chosen = np.minimum(context, self.knee)
        return layers * (self.slope_s * chosen + self.beyond_s * (context - chosen))


class Attention(Protocol):
    """What a model's attention costs: one layer on one rank."""

    def context_cost(self, system: System, rank_batch: Array) -> ContextCost:
        """Return what a decode step of `rank_batch` requests on one rank pays for its context."""
        ...

    def projections_s(self, system: System, rank_tokens: Array) -> Array:
        """Seconds of projections beside MLA's own."""
        ...

    def pair_s(self, system: System) -> Array:
        """Seconds of prefill, all layers, per pair of a new token and one it attends to."""
        ...

    def scan_s(self, system: System) -> Array:
        """Seconds of prefill, all layers, per pair of a new token and one before it, attended to or not."""
        ...

    def attended(self, prompts: float | Array, new_tokens: float | Array, pairs: float | Array) -> Array:
        """Return the pairs attended to, of the `pairs` that causality allows a pass over `prompts` prompts."""
        ...


@dataclass(frozen=True, slots=True)
class DenseLatentAttention:
    """MLA over the whole context: absorbed in decode, expanded to keys and values in prefill."""

    def context_cost(self, system: System, rank_batch: Array) -> ContextCost:
        slope = _latent_slope(system, rank_batch)
        return ContextCost(slope_s=slope, beyond_s=slope)

    def projections_s(self, system: System, rank_tokens: Array) -> Array:
        return np.zeros_like(rank_tokens)

    def pair_s(self, system: System) -> Array:
        """Not absorbed: keys and values are expanded, (192 + 128) x heads multiply-adds a pair."""
        arch, machine, table, engine = system.parts
        heads = arch.num_attention_heads / table.attn_tp
        widths = arch.q_head_dim + arch.v_head_dim
        rate = engine.eta_pa * matrix_rate(machine.bf16_flops, PREFILL_ATTENTION_FRACTION, PREFILL_ATTENTION_CEILING)
        return arch.num_hidden_layers * 2.0 * heads * widths / rate

    def scan_s(self, system: System) -> Array:
        return np.zeros_like(system.table.tp)

    def attended(self, prompts: float | Array, new_tokens: float | Array, pairs: float | Array) -> Array:
        return np.asarray(pairs)


@dataclass(frozen=True, slots=True)
class SparseLatentAttention:
    """MLA over the `topk` tokens an indexer chose: every token is scored, few are read.

    The indexer is whole on every rank: SGLang does not split its heads. Prefill attends in the absorbed form.
    """

    topk: int

    def context_cost(self, system: System, rank_batch: Array) -> ContextCost:
        scored = self._score_s(system, rank_batch)
        chosen = _latent_slope(system, rank_batch, share=GATHER_SHARE)
        return ContextCost(slope_s=chosen + scored, beyond_s=scored, knee=float(self.topk))

    def _score_s(self, system: System, rank_batch: Array) -> Array:
        """Seconds of scoring one token of context: its index key is streamed, or multiplied with every index head."""
        arch, machine, table, engine = system.parts
        rates = Rates.of(machine, engine.eta_kv)
        stream = rank_batch * arch.index_cache_bytes / rates.stream_bytes_s
        rows = np.ceil(arch.index_n_heads * table.tokens_per_request / 64.0) * 64.0
        arithmetic = 2.0 * rows * arch.index_head_dim * rank_batch / (INDEX_FRACTION * machine.gemm_flops)
        return np.maximum(stream, arithmetic)

    def projections_s(self, system: System, rank_tokens: Array) -> Array:
        arch, machine, _, engine = system.parts
        rates = Rates.of(machine, engine.eta_w)
        weight = kernel_of(arch.weight_formats.indexer, arch, machine)
        return (
            gemm_s(rank_tokens, arch.index_n_heads * arch.index_head_dim, arch.q_lora_rank, weight, rates)
            + gemm_s(rank_tokens, arch.index_head_dim, arch.hidden_size, weight, rates)
            + gemm_s(rank_tokens, arch.index_n_heads, arch.hidden_size, bf16_kernel(machine), rates)
        )

    def pair_s(self, system: System) -> Array:
        arch, machine, table, engine = system.parts
        heads = arch.num_attention_heads / table.attn_tp
        widths = arch.latent_width + arch.kv_lora_rank
        rate = engine.eta_pa * matrix_rate(machine.bf16_flops, PREFILL_ATTENTION_FRACTION, PREFILL_ATTENTION_CEILING)
        return arch.num_hidden_layers * 2.0 * heads * widths / rate

    def scan_s(self, system: System) -> Array:
        arch, machine, table, _ = system.parts
        flops = arch.num_hidden_layers * 2.0 * arch.index_n_heads * arch.index_head_dim
        return flops / (INDEX_FRACTION * machine.gemm_flops) * np.ones_like(table.tp)

    def attended(self, prompts: float | Array, new_tokens: float | Array, pairs: float | Array) -> Array:
        """Every token attends to all tokens before it, or to the chosen ones where it has more; prompts are alike."""
        each = np.asarray(new_tokens) / prompts
        before = np.maximum(0.0, np.asarray(pairs) / np.maximum(new_tokens, 1.0) - each / 2.0)
        return prompts * (self._up_to(before + each) - self._up_to(before))

    def _up_to(self, tokens: Array) -> Array:
        """Return the pairs attended to by the first so many tokens of a prompt."""
        within = np.minimum(tokens, float(self.topk))
        return within * within / 2.0 + self.topk * (tokens - within)


def attention_of(arch: ModelArchitecture) -> Attention:
    """Return the attention of a model."""
    return SparseLatentAttention(arch.index_topk) if arch.is_sparse else DenseLatentAttention()


def _latent_slope(system: System, rank_batch: Array, share: float = 1.0) -> Array:
    """Seconds one layer's absorbed attention takes per token read; `share` of the streaming rate is reached."""
    arch, machine, table, engine = system.parts
    cache = LatentCache(width=arch.latent_width, value=arch.kv_lora_rank, element_bytes=table.kv_element_bytes)
    query_rows = arch.num_attention_heads / table.attn_tp * table.tokens_per_request
    return mla_seconds_per_context_token(rank_batch, query_rows, cache, Rates.of(machine, share * engine.eta_kv))
