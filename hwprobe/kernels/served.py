"""The kernels SGLang runs for R1, where they import: DeepGEMM's block-scaled FP8 and FlashMLA's decode."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hwprobe.kernels.bandwidth import CACHES
from hwprobe.kernels.compute import FP8_LARGEST, GPU_SHAPES, Shape
from hwprobe.kernels.report import Report, duration_us, rate
from hwprobe.kernels.timing import Timer, Work, random_tensor, time_work
from hwprobe.profile import Quantity

# R1's scales: one for 128 numbers of a token, one for 128 x 128 weights.
BLOCK = 128
# FP8 E4M3 keeps 3 bits of mantissa: a product of blocks scaled rightly agrees with FP32 far better than this.
LARGEST_ERROR = 0.05
CHECKED: Shape = (128, 256, 512)

# Attention of R1 after absorption: 512 latent and 64 rope numbers a token, shared by all heads.
LATENT, ROPE = 512, 64
PAGE_TOKENS = 64
# Heads of one GPU: an eighth of 128 under tensor parallelism, all of them under attention DP.
HEADS = (16, 128)
# Requests and tokens of context each: the floor of one request, then what a loaded server decodes.
CONTEXTS = ((1, 4096), (32, 4096), (128, 4096))

UNUSABLE = (ImportError, AttributeError, OSError, RuntimeError, AssertionError, TypeError)


def measure_deep_gemm(timer: Timer, *, quick: bool, shapes: tuple[Shape, ...] = GPU_SHAPES) -> Report:
    """Measure DeepGEMM's FP8 GEMM with R1's block scales, in TFLOP/s; first checked against FP32.

    Weights rotate through ten times the last cache, in a CUDA graph. A kernel that fails to import, compile or compute
    correctly is reported as missing.
    """
    try:
        kernel: Callable[..., Any] = importlib.import_module("deep_gemm").fp8_gemm_nt
        layout = importlib.import_module("deep_gemm.utils.layout").get_mn_major_tma_aligned_tensor
        wrong = _relative_error(timer, kernel, layout)
    except UNUSABLE as error:
        return Report(missing=(f"DeepGEMM: {_first_line(error)}",))
    if not wrong <= LARGEST_ERROR:
        return Report(missing=(f"DeepGEMM: its product is {wrong:.0%} off that of FP32; no figure",))
    quantities: dict[str, Quantity] = {}
    missing: list[str] = []
    for m, n, k in shapes[:1] if quick else shapes:
        try:
            timing, number = _deep_gemm(timer, (kernel, layout), (m, n, k), samples=5 if quick else 11)
        except UNUSABLE as error:
            missing.append(f"DeepGEMM {m}x{n}x{k}: {_first_line(error)}")
            continue
        source = f"DeepGEMM fp8_gemm_nt {m}x{n}x{k}, scales of 1x128 and 128x128, {number} weights in rotation"
        name = f"fp8_block_{m}x{n}x{k}_tflops" if quantities else "fp8_block_tflops"
        quantities[name] = rate(2.0 * m * n * k / 1e12, timing, source)
    return Report(quantities=quantities, missing=tuple(missing))


def _deep_gemm(timer: Timer, using: tuple[Any, Any], shape: Shape, *, samples: int) -> tuple[Any, int]:
    kernel, layout = using
    m, n, k = shape
    lhs = _by_token(random_tensor(m * k, torch.bfloat16, timer.device).view(m, k))
    lhs = (lhs[0], layout(lhs[1]))
    number = min(math.ceil(CACHES * timer.cache_bytes / (n * k)), timer.free_bytes() // 6 // (n * k))
    number = max(1, number) if timer.has_graphs else 1
    rhs = [_by_block(random_tensor(n * k, torch.bfloat16, timer.device).view(n, k)) for _ in range(number)]
    out = torch.empty(m, n, dtype=torch.bfloat16, device=timer.device)

    def work() -> None:
        for each in rhs:
            kernel(lhs, each, out)

    whole = time_work(timer, timer.graph(work), samples=samples)
    return replace(whole, seconds=whole.seconds / number), number


def _relative_error(timer: Timer, kernel: Callable[..., Any], layout: Callable[..., Any]) -> float:
    """Return how far a small product lies from that of the same quantized numbers in FP32."""
    m, n, k = CHECKED
    lhs = _by_token(random_tensor(m * k, torch.bfloat16, timer.device).view(m, k))
    rhs = _by_block(random_tensor(n * k, torch.bfloat16, timer.device).view(n, k))
    out = torch.empty(m, n, dtype=torch.bfloat16, device=timer.device)
    kernel((lhs[0], layout(lhs[1])), rhs, out)
    lhs_exact = lhs[0].float() * lhs[1].repeat_interleave(BLOCK, 1)
    rhs_exact = rhs[0].float() * rhs[1].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    exact = lhs_exact @ rhs_exact.t()
    return float((out.float() - exact).norm() / exact.norm())


def _by_token(wide: Any) -> tuple[Any, Any]:
    """Return FP8 numbers and one scale for every 128 of a row."""
    rows, columns = wide.shape
    blocks = wide.float().view(rows, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax(2).clamp_(min=1e-4) / FP8_LARGEST
    return (blocks / scales.unsqueeze(2)).to(torch.float8_e4m3fn).view(rows, columns), scales


def _by_block(wide: Any) -> tuple[Any, Any]:
    """Return FP8 numbers and one scale for every 128 x 128; the last block of rows may be smaller."""
    rows, columns = wide.shape
    count = math.ceil(rows / BLOCK)
    padded = torch.zeros(count * BLOCK, columns, device=wide.device)
    padded[:rows] = wide.float()
    blocks = padded.view(count, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp_(min=1e-4) / FP8_LARGEST
    numbers = (blocks / scales.view(count, 1, -1, 1)).to(torch.float8_e4m3fn)
    return numbers.view(-1, columns)[:rows].contiguous(), scales


def measure_flash_mla(
    timer: Timer,
    *,
    quick: bool,
    heads: tuple[int, ...] = HEADS,
    contexts: tuple[tuple[int, int], ...] = CONTEXTS,
) -> Report:
    """Measure FlashMLA's decode over a BF16 KV cache: us of one layer, and GB/s of the KV cache it reads."""
    try:
        module = _flash_mla()
    except UNUSABLE as error:
        return Report(missing=(f"FlashMLA: {_first_line(error)}",))
    quantities: dict[str, Quantity] = {}
    missing: list[str] = []
    for count in heads[:1] if quick else heads:
        for requests, tokens in contexts:
            name = f"flash_mla_{count}_heads_{requests}x{tokens}"
            try:
                work = _decode(timer, module, count, (requests, tokens))
                timing = time_work(timer, timer.graph(work), samples=5 if quick else 11)
            except UNUSABLE as error:
                missing.append(f"FlashMLA {count} heads, {requests} x {tokens}: {_first_line(error)}")
                continue
            read = requests * tokens * (LATENT + ROPE) * 2
            source = f"FlashMLA decode, BF16 KV cache of {read / 2**20:.0f} MiB, {requests} requests of {tokens} tokens"
            quantities[f"{name}_us"] = duration_us(timing, source)
            if read > CACHES * timer.cache_bytes / 5:  # a smaller one is still in the cache from the run before
                quantities[f"{name}_gb_s"] = rate(read / 1e9, timing, source)
    return Report(quantities=quantities, missing=tuple(missing))


def _flash_mla() -> Any:
    try:
        return importlib.import_module("sgl_kernel.flash_mla")
    except ImportError:
        return importlib.import_module("flash_mla")


def _decode(timer: Timer, module: Any, heads: int, context: tuple[int, int]) -> Work:
    """Return one layer's decode with the arguments SGLang gives (flashmla_backend.py of 0.5.17)."""
    requests, tokens = context
    width, pages = LATENT + ROPE, tokens // PAGE_TOKENS
    query = random_tensor(requests * heads * width, torch.bfloat16, timer.device).view(requests, 1, heads, width)
    cache = random_tensor(requests * tokens * width, torch.bfloat16, timer.device).view(-1, PAGE_TOKENS, 1, width)
    table = torch.randperm(requests * pages, device=timer.device).to(torch.int32).view(requests, pages)
    lengths = torch.full((requests,), tokens, dtype=torch.int32, device=timer.device)
    tiles, splits = module.get_mla_metadata(lengths, heads, 1)

    def work() -> Any:
        return module.flash_mla_with_kvcache(
            q=query,
            k_cache=cache,
            block_table=table,
            cache_seqlens=lengths,
            head_dim_v=LATENT,
            tile_scheduler_metadata=tiles,
            num_splits=splits,
            softmax_scale=(128 + ROPE) ** -0.5,
            causal=True,
        )

    return work


def _first_line(error: BaseException) -> str:
    """Return the first line of an error; an error of CUDA itself goes on: it ends the child."""
    if "CUDA error" in str(error):
        raise error
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
