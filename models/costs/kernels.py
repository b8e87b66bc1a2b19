"""What single kernels cost: streams, matrix products, experts, latent attention, collectives.

Every function takes arrays or scalars, SI units (bytes, FLOP/s, seconds), and broadcasts.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np

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


def matrix_rate(peak_flops: float | Array, fraction: float, ceiling_flops: float) -> float | Array:
    """FLOP/s of a matrix kernel: harmonic in `fraction x peak` and a ceiling of its own."""
    return 1.0 / (1.0 / (fraction * peak_flops) + 1.0 / ceiling_flops)


def gemm_s(
    rows: Array, n: Array | float, k: Array | float, weight_bytes: float, machine: Machine, eta_w: float
) -> Array:
    """Seconds of a GEMM (rows x k) @ (k x n): streaming, the serial walk over k, or arithmetic.

    `weight_bytes` is bytes per weight (1.000244 FP8, 2 BF16). Known error: MAPE 10 % against
    published DeepGEMM timings.
    """
    moved = n * k * weight_bytes + rows * k + 2.0 * rows * n
    peak = machine.gemm_flops if weight_bytes < 2.0 else machine.bf16_flops
    rate = matrix_rate(peak, DENSE_FRACTION, DENSE_CEILING)
    streaming = moved / (eta_w * machine.hbm_bytes_s)
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


def moe_tp_s(
    tokens: Array,
    distinct: Array,
    top_k: int,
    expert_params: float,
    weight_bytes: float,
    row_bytes: Array | float,
    shards: Array,
    machine: Machine,
    eta_w: float,
    tile_rows: Array | float = MOE_TILE_ROWS,
) -> Array:
    """Seconds of one MoE layer's experts sharded by width: stream every touched expert and the shared one.

    `row_bytes` is what one routed row reads and writes around the weights. Rows are padded to tiles, at least
    `tile_rows` of them for a touched expert;
    streaming and arithmetic overlap in part (cubic mean). Known error: MAPE 6 % against Triton MoE timings
    on H200, 1 to 1024 tokens.
    """
    rows_each = top_k * tokens / np.maximum(distinct, 1.0)
    weights = (distinct + 1.0) * expert_params * weight_bytes / shards
    activations = (top_k + 1.0) * tokens * row_bytes
    stream = (weights + activations) / (eta_w * machine.hbm_bytes_s)
    rows = (distinct + 1.0) * np.maximum(tile_rows, MOE_PADDING * rows_each)
    rate = matrix_rate(machine.gemm_flops, MOE_FRACTION, MOE_CEILING)
    arithmetic = 2.0 * rows * expert_params / shards / rate
    return np.cbrt(stream**3 + arithmetic**3)


def moe_ep_s(
    tokens: Array,
    distinct: Array,
    experts: int,
    top_k: int,
    expert_params: float,
    weight_bytes: float,
    ep: Array,
    deep_gemm: Array,
    machine: Machine,
    eta_w: float,
) -> Array:
    """Seconds of one MoE layer's routed experts sharded by number, on the slowest rank.

    The slowest of `ep` ranks holds more of the touched experts than the mean; the excess shrinks as
    all experts are touched. `deep_gemm` is 1 where SGLang runs DeepGEMM (behind an all-to-all backend), 0
    where it runs Triton. Known error: kernel sums miss 60-300 us a layer of dispatch and rank
    synchronisation, which the engine profile adds (ep_layer_us).
    """
    mean_experts = distinct / ep
    excess = 0.35 * np.sqrt(np.log2(np.maximum(ep, 1.0)) / np.maximum(mean_experts, 1e-9))
    imbalance = 1.0 + excess * (1.0 - 0.5 * distinct / experts)
    held = np.minimum(mean_experts * imbalance, experts / ep)
    efficiency = np.where(deep_gemm > 0, EP_STREAM_EFFICIENCY, eta_w)
    stream = held * expert_params * weight_bytes / (efficiency * machine.hbm_bytes_s)
    rows_each = top_k * tokens / np.maximum(distinct, 1.0)
    tile = np.where(deep_gemm > 0, DEEP_GEMM_TILE_ROWS, MOE_TILE_ROWS)
    rows = held * np.maximum(tile, MOE_PADDING * rows_each)
    triton = matrix_rate(machine.gemm_flops, MOE_FRACTION, MOE_CEILING)
    rate = np.where(deep_gemm > 0, EP_FRACTION * machine.gemm_flops, triton)
    arithmetic = 2.0 * rows * expert_params / rate
    return np.cbrt(stream**3 + arithmetic**3)


def mla_seconds_per_context_token(
    batch: Array,
    heads: Array,
    queries: Array,
    kv_bytes: Array,
    latent: int,
    value: int,
    machine: Machine,
    eta_kv: float,
) -> Array:
    """Slope of absorbed MLA decode: seconds per token of context, for `batch` requests on one rank.

    Either the latent cache is streamed once, or the padded tile of query rows is multiplied with it:
    16 heads pay for 64 rows, which binds on H20.
    """
    rows = np.ceil(heads * queries / MLA_TILE_ROWS) * MLA_TILE_ROWS
    stream = batch * latent * kv_bytes / (eta_kv * machine.hbm_bytes_s)
    peak = np.where(np.asarray(kv_bytes) < 2.0, machine.gemm_flops, machine.bf16_flops)  # FP8 KV: FP8 products
    arithmetic = 2.0 * rows * (latent + value) * batch / (MLA_FRACTION * peak)
    return np.maximum(stream, arithmetic)


def all_reduce_s(message_bytes: Array, ranks: Array, nodes: Array, machine: Machine, across_us: float) -> Array:
    """Seconds of one all-reduce of `message_bytes` over `ranks` GPUs on `nodes` nodes.

    Inside a node: custom one-shot up to 256 KiB, then the better of two-shot and NCCL with NVLS
    (fitted to graph-mode timings on 8 GPUs, MAPE 11 %). Across nodes: `across_us`, NCCL's latency of a small
    message (46 us published for 16 x H20; the profile's own is fitted), and one eighth of the message over the
    network twice.
    """
    link = machine.nvlink_bytes_s
    others = np.maximum(ranks / nodes - 1.0, 0.0)
    share = others / np.maximum(ranks / nodes, 1.0)
    one_shot = 4.6 * US + others * message_bytes / (0.64 * link)
    two_shot = 12.5 * US + 2.0 * share * message_bytes / (0.62 * link)
    nccl = 45.0 * US + 2.0 * share * message_bytes / (1.04 * link)
    inside = np.where(message_bytes <= 256 * KIB, one_shot, np.minimum(two_shot, nccl))
    over_network = 2.0 * message_bytes / np.maximum(ranks / nodes, 1.0) / machine.network_bytes_s
    across = across_us * US + 2.0 * share * message_bytes / (1.04 * link) + over_network
    return np.where(ranks <= 1, 0.0, np.where(nodes > 1, across, inside))


def dispatch_combine_s(tokens_per_rank: Array, nodes: Array) -> Array:
    """Seconds of one DeepEP low-latency dispatch and combine (H200 tables: 1 and 2 nodes, EP64).

    25 + 0.70 us per token on one node; 49 + 1.9 on two; latency grows with the logarithm of the nodes.
    """
    doublings = np.log2(np.maximum(nodes, 1.0))
    return (25.0 + 24.0 * doublings + (0.695 + 1.0 * doublings) * tokens_per_rank) * US
