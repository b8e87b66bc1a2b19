"""What single kernels cost: streams, matrix products, experts, latent attention, collectives.

Every function takes arrays or scalars, SI units (bytes, FLOP/s, seconds), and broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from models.costs.weight_kernels import WeightKernel
from models.layout import Array
from models.machine import Machine

US = 1e-6
KIB = 1024.0

# Matrix rates: fraction of peak reached, and a ceiling that binds on GPUs whose peak the kernel cannot use.
# Fitted to kernel timings on H200 and H20 together; one fraction alone misses one of them by 2x.
DENSE_FRACTION, DENSE_CEILING = 0.80, 3.5e15
MOE_FRACTION, MOE_CEILING = 0.75, 7e14
PREFILL_ATTENTION_FRACTION, PREFILL_ATTENTION_CEILING = 0.80, 1.3e15
MLA_FRACTION = 0.68
# A GEMM of few rows walks K serially: 512 x 7168 takes 11-14 us on H200 although it is 3.7 MB.
SECONDS_PER_K = 0.5e-9
# Rows of one WGMMA tile: fewer query heads than this are padded up to it.
MLA_TILE_ROWS = 64
# Rows the MoE kernel multiplies: at least one tile for every touched expert; tiles double, so they are
# 1.4 times too large on average (geometric mean of 1 and 2).
MOE_TILE_ROWS = 16.0
MOE_PADDING = 1.41
# DeepGEMM's masked grouped GEMM, behind DeepEP: fraction of HBM, fraction of peak, rows of a tile.
EP_STREAM_EFFICIENCY = 0.85
DEEP_GEMM_TILE_ROWS = 64.0
EP_FRACTION = 0.65
# How far the fullest of 2 ranks is above the mean, times the square root of the experts it holds.
EP_EXCESS = 0.35
# All-reduce inside a node: start-up in us, and the share of the NVLink rate reached. Fitted to graph-mode timings on
# 8 GPUs, MAPE 11 %. SGLang's custom kernel takes one shot up to 256 KiB.
ONE_SHOT_US, ONE_SHOT_SHARE, ONE_SHOT_BYTES = 4.6, 0.64, 256 * KIB
TWO_SHOT_US, TWO_SHOT_SHARE = 12.5, 0.62
NCCL_US, NCCL_SHARE = 45.0, 1.04
# DeepEP's low-latency dispatch and combine (H200 tables): start-up and per token, on one node and per doubling.
DEEP_EP_US, DEEP_EP_DOUBLING_US = 25.0, 24.0
DEEP_EP_TOKEN_US, DEEP_EP_TOKEN_DOUBLING_US = 0.695, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What kernels reach on one GPU: bytes/s of their streams; the HBM's own, and peak FLOP/s in FP8 and BF16."""

    stream_bytes_s: float
    hbm_bytes_s: float
    fp8_flops: float
    bf16_flops: float

    @classmethod
    def of(cls, machine: Machine, efficiency: float) -> Rates:
        """Return the rates of kernels that reach `efficiency` (a fraction) of the machine's HBM bandwidth."""
        return cls(
            stream_bytes_s=efficiency * machine.hbm_bytes_s,
            hbm_bytes_s=machine.hbm_bytes_s,
            fp8_flops=machine.gemm_flops,
            bf16_flops=machine.bf16_flops,
        )


def gemm_s(rows: Array, n: Array | float, k: Array | float, kernel: WeightKernel, rates: Rates) -> Array:
    """Seconds of a GEMM (rows x k) @ (k x n): streaming, the serial walk over k, or arithmetic.

    Known error: MAPE 10 % against published DeepGEMM timings (FP8).
    """
    moved = n * k * kernel.weight_bytes + rows * k + 2.0 * rows * n
    rate = kernel.reached(DENSE_FRACTION, DENSE_CEILING)
    streaming = moved / (rates.stream_bytes_s * kernel.stream_share)
    return np.maximum(np.maximum(streaming, SECONDS_PER_K * k), 2.0 * rows * n * k / rate)


@lru_cache(maxsize=64)
def _distinct_table(experts: int, top_k: int, sigma: float) -> tuple[Array, Array]:
    """Expected distinct experts on a logarithmic grid of token counts, for one popularity spread."""
    quantile = NormalDist().inv_cdf
    z = np.array([quantile((e + 0.5) / experts) for e in range(experts)])
    popularity = np.exp(sigma * z)
    share = np.minimum(1.0, top_k * popularity / popularity.sum())
    tokens = np.concatenate([[0.0], np.geomspace(0.25, 1e6, 400)])
    hit = 1.0 - (1.0 - share[None, :]) ** tokens[:, None]
    return np.log1p(tokens), hit.sum(axis=1)


def distinct_experts(tokens: Array, experts: int, top_k: int, sigma: float) -> Array:
    """Expected number of different routed experts that `tokens` tokens touch in one layer.

    d(T) = sum over experts of 1 - (1 - p_e)^T, with p_e proportional to exp(sigma x normal quantile).
    Group-limited routing does not change it for independent tokens. Interpolated on a 400-point grid
    (error below 0.05 %).
    """
    grid, distinct = _distinct_table(experts, top_k, sigma)
    return np.interp(np.log1p(tokens), grid, distinct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """One layer's routed experts: how many, how many a token takes, the parameters of one and what multiplies them.

    `shared` is the shared expert in routed ones, by bytes (1 where both are stored alike).
    """

    count: int
    top_k: int
    params: float
    kernel: WeightKernel
    shared: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ByWidth:
    """Experts cut by width over `shards` GPUs; `row_bytes` is what a routed row moves beside the weights.

    A touched expert multiplies at least `tile_rows` rows.
    """

    shards: Array
    row_bytes: Array | float
    tile_rows: Array | float = MOE_TILE_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class ByNumber:
    """Experts spread by number over `ranks` GPUs; `deep_gemm` is 1 behind an all-to-all backend, 0 with Triton."""

    ranks: Array
    deep_gemm: Array


def moe_tp_s(tokens: Array, distinct: Array, experts: Experts, cut: ByWidth, rates: Rates) -> Array:
    """Seconds of one MoE layer's experts sharded by width: stream every touched expert and the shared one.

    Rows are padded to tiles; streaming and arithmetic overlap in part (cubic mean). Known error: MAPE 6 % against
    Triton MoE timings on H200, 1 to 1024 tokens.
    """
    rows_each = experts.top_k * tokens / np.maximum(distinct, 1.0)
    weights = (distinct + experts.shared) * experts.params * experts.kernel.weight_bytes / cut.shards
    activations = (experts.top_k + 1.0) * tokens * cut.row_bytes
    stream = (weights + activations) / (rates.stream_bytes_s * experts.kernel.stream_share)
    rows = (distinct + 1.0) * np.maximum(cut.tile_rows, MOE_PADDING * rows_each)
    rate = experts.kernel.reached(MOE_FRACTION, MOE_CEILING)
    arithmetic = 2.0 * rows * experts.params / cut.shards / rate
    return np.cbrt(stream**3 + arithmetic**3)


def moe_ep_s(tokens: Array, distinct: Array, experts: Experts, cut: ByNumber, rates: Rates) -> Array:
    """Seconds of one MoE layer's routed experts sharded by number, on the slowest rank.

    The slowest of the ranks holds more of the touched experts than the mean; the excess shrinks as
    all experts are touched. Known error: kernel sums miss 60-300 us a layer of dispatch and rank
    synchronisation, which the engine profile adds (ep_layer_us).
    """
    mean_experts = distinct / cut.ranks
    excess = EP_EXCESS * np.sqrt(np.log2(np.maximum(cut.ranks, 1.0)) / np.maximum(mean_experts, 1e-9))
    imbalance = 1.0 + excess * (1.0 - 0.5 * distinct / experts.count)
    touched_experts = np.minimum(mean_experts * imbalance, experts.count / cut.ranks)
    kernel = experts.kernel
    streamed = np.where(cut.deep_gemm > 0, EP_STREAM_EFFICIENCY * rates.hbm_bytes_s, rates.stream_bytes_s)
    stream = touched_experts * experts.params * kernel.weight_bytes / (streamed * kernel.stream_share)
    rows_each = experts.top_k * tokens / np.maximum(distinct, 1.0)
    tile = np.where(cut.deep_gemm > 0, DEEP_GEMM_TILE_ROWS, MOE_TILE_ROWS)
    rows = touched_experts * np.maximum(tile, MOE_PADDING * rows_each)
    triton = kernel.reached(MOE_FRACTION, MOE_CEILING)
    rate = np.where(cut.deep_gemm > 0, EP_FRACTION * kernel.rate_share * kernel.flops, triton)
    arithmetic = 2.0 * rows * experts.params / rate
    return np.cbrt(stream**3 + arithmetic**3)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCache:
    """One token of MLA's cache: its elements, those of them that are the value too, and the bytes of an element."""

    width: int
    value: int
    element_bytes: Array


def mla_seconds_per_context_token(batch: Array, query_rows: Array, cache: LatentCache, rates: Rates) -> Array:
    """Slope of absorbed MLA decode: seconds per token of context, for `batch` requests on one rank.

    Either the latent cache is streamed once, or the padded tile of `query_rows` (heads x tokens) is multiplied with
    it: 16 heads pay for 64 rows, which binds on H20.
    """
    rows = np.ceil(query_rows / MLA_TILE_ROWS) * MLA_TILE_ROWS
    stream = batch * cache.width * cache.element_bytes / rates.stream_bytes_s
    peak = np.where(np.asarray(cache.element_bytes) < 2.0, rates.fp8_flops, rates.bf16_flops)  # FP8 KV: FP8 products
    arithmetic = 2.0 * rows * (cache.width + cache.value) * batch / (MLA_FRACTION * peak)
    return np.maximum(stream, arithmetic)


def all_reduce_s(message_bytes: Array, ranks: Array, nodes: Array, machine: Machine, across_us: float) -> Array:
    """Seconds of one all-reduce of `message_bytes` over `ranks` GPUs on `nodes` nodes.

    Inside a node: custom one-shot for small messages, then the better of two-shot and NCCL with NVLS. Across nodes:
    `across_us`, NCCL's latency of a small message (46 us published for 16 x H20; the profile's own is fitted), and one
    eighth of the message over the network twice.
    """
    link = machine.nvlink_bytes_s
    others = np.maximum(ranks / nodes - 1.0, 0.0)
    share = others / np.maximum(ranks / nodes, 1.0)
    one_shot = ONE_SHOT_US * US + others * message_bytes / (ONE_SHOT_SHARE * link)
    two_shot = TWO_SHOT_US * US + 2.0 * share * message_bytes / (TWO_SHOT_SHARE * link)
    by_nccl = 2.0 * share * message_bytes / (NCCL_SHARE * link)
    nccl = NCCL_US * US + by_nccl
    inside = np.where(message_bytes <= ONE_SHOT_BYTES, one_shot, np.minimum(two_shot, nccl))
    over_network = 2.0 * message_bytes / np.maximum(ranks / nodes, 1.0) / machine.network_bytes_s
    across = across_us * US + by_nccl + over_network
    return np.where(ranks <= 1, 0.0, np.where(nodes > 1, across, inside))


def dispatch_combine_s(tokens_per_rank: Array, nodes: Array) -> Array:
    """Seconds of one DeepEP low-latency dispatch and combine (H200 tables: 1 and 2 nodes, EP64).

    25 + 0.70 us per token on one node; 49 + 1.9 on two; latency grows with the logarithm of the nodes.
    """
    doublings = np.log2(np.maximum(nodes, 1.0))
    start_us = DEEP_EP_US + DEEP_EP_DOUBLING_US * doublings
    token_us = DEEP_EP_TOKEN_US + DEEP_EP_TOKEN_DOUBLING_US * doublings
    return (start_us + token_us * tokens_per_rank) * US
