"""How fast matrices multiply and kernels start: GEMM rates, graph-node latency, eager launch cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hwprobe.kernels.bandwidth import CACHES
from hwprobe.kernels.fits import timing_of
from hwprobe.kernels.report import Emit, Report, duration_us, nowhere, rate
from hwprobe.kernels.timing import Timer, Work, random_tensor, time_work, warm_up
from hwprobe.profile import Quantity

Shape = tuple[int, int, int]
Draw = Callable[[int, torch.dtype, torch.device], Any]

# M, N, K. The first is the peak; the others are a prefill chunk of 8192 tokens against one GPU's share
# (of 8) of DeepSeek-V3's projections, then 256 rows of one whole expert as expert parallelism sends them.
GPU_SHAPES: tuple[Shape, ...] = (
    (8192, 8192, 8192),
    (8192, 2112, 7168),
    (8192, 3072, 1536),
    (8192, 7168, 2048),
    (8192, 4608, 7168),
    (256, 4096, 7168),
    (256, 7168, 2048),
)
CPU_SHAPES: tuple[Shape, ...] = ((1024, 1024, 1024), (256, 4096, 1024))
SUSTAINED_SHAPE: Shape = (8192, 8192, 8192)
# At 700 W clocks settle within some seconds; a sample is long enough that starting it costs nothing.
HOLD_S = 10.0
QUICK_HOLD_S = 2.0
HOLD_SAMPLE_S = 0.1
NODES = 1000
LAUNCHES = 500
FP8_CAPABILITY = (8, 9)
FP8_LARGEST = 448.0


def measure_gemm(timer: Timer, *, quick: bool, shapes: tuple[Shape, ...] | None = None, emit: Emit = nowhere) -> Report:
    """Measure dense matrix rates in TFLOP/s: BF16, and FP8 on GPUs that have it (FP32 on a CPU).

    In CUDA graphs where there are any: a GEMM of 7 us ends before Python has queued the next.
    """
    gpu = timer.device.type == "cuda"
    shapes = shapes or (GPU_SHAPES if gpu else CPU_SHAPES)
    if quick:
        shapes = shapes[:1]
    quantities = gemm_rates(timer, torch.bfloat16, shapes, quick=quick)
    emit(Report(quantities=quantities))
    if not gpu:
        rates = gemm_rates(timer, torch.float32, shapes, quick=quick)
        return Report(quantities=quantities | rates, missing=("FP8: only GPUs have it",))
    reason = _without_fp8(timer)
    if reason is None:
        try:
            return Report(quantities=quantities | gemm_rates(timer, fp8_type(timer), shapes, quick=quick))
        except RuntimeError as error:
            reason = _refusal(error)
    return Report(quantities=quantities, missing=(f"FP8: {reason}",))


def measure_sustained(
    timer: Timer,
    *,
    quick: bool,
    shape: Shape | None = None,
    hold_s: float | None = None,
    emit: Emit = nowhere,
) -> Report:
    """Measure the peak's GEMM for ten seconds each in BF16 and FP8: what is left at the card's power limit, in TFLOP/s.

    The median of the second half counts; how far the first half second lies above it is in the source. Clock and power
    of that time are the watch's to note (`hwprobe.watch`).
    """
    duration_s = hold_s or (QUICK_HOLD_S if quick else HOLD_S)
    shape = shape or (SUSTAINED_SHAPE if timer.device.type == "cuda" else CPU_SHAPES[0])
    types = [torch.bfloat16]
    missing: list[str] = []
    if timer.device.type == "cuda":
        reason = _without_fp8(timer)
        types += [] if reason else [fp8_type(timer)]
        missing += [f"FP8, sustained: {reason}"] if reason else []
    quantities: dict[str, Quantity] = {}
    for dtype in types:
        try:
            quantities[f"{_name(dtype)}_sustained_tflops"] = _held(timer, dtype, shape, duration_s)
        except RuntimeError as error:
            missing.append(f"{_name(dtype).upper()}, sustained: {_refusal(error)}")
        emit(Report(quantities=dict(quantities)))
    return Report(quantities=quantities, missing=tuple(missing))


def _held(timer: Timer, dtype: torch.dtype, shape: Shape, held_s: float) -> Quantity:
    m, n, k = shape
    work = timer.graph(_product(timer, dtype, shape, random_tensor))
    once = warm_up(timer, work, 0.0)
    calls = max(1, math.ceil(HOLD_SAMPLE_S / once))
    begin = time.perf_counter()
    samples: list[float] = []
    while not samples or time.perf_counter() - begin < held_s:
        samples.append(timer.seconds(work, calls))
    late, early = timing_of(samples[len(samples) // 2 :]), timing_of(samples[: max(1, len(samples) // 20)])
    drop = 100.0 * (1.0 - early.seconds / late.seconds)
    source = f"{_name(dtype).upper()} {m}x{n}x{k} for {held_s:g} s, second half; {drop:.1f} % below its beginning"
    return rate(2.0 * m * n * k / 1e12, late, source)


def _without_fp8(timer: Timer) -> str | None:
    return fp8_missing(torch.cuda.get_device_capability(timer.device), torch.version.hip is not None)


def _refusal(error: RuntimeError) -> str:
    """Return torch's refusal of a type or layout in words. Raises an error of CUDA itself: the child must end."""
    if "CUDA error" in str(error) or "CUDA out of memory" in str(error):
        raise error
    return f"torch {torch.__version__} refuses ({str(error).splitlines()[0]})"


def fp8_missing(capability: tuple[int, int], rocm: bool) -> str | None:
    """Return why FP8 GEMMs cannot be measured on a GPU of this compute capability, or None."""
    if not rocm and capability < FP8_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} has none"
    return None if hasattr(torch, "_scaled_mm") else f"torch {torch.__version__} has no _scaled_mm; upgrade torch"


def gemm_rates(
    timer: Timer, dtype: torch.dtype, shapes: tuple[Shape, ...], *, quick: bool, data: Draw = random_tensor
) -> dict[str, Quantity]:
    """Measure GEMMs of several shapes in TFLOP/s; the first is the type's headline figure.

    On a GPU the weights rotate through ten times the last cache: a layer's weights are never still there from the
    token before. FP8 is E4M3 with one scale per tensor and fast accumulation, BF16 output: the peak, and an upper bound
    of the block-scaled kernels that R1 runs. `data` draws the operands.
    """
    name = _name(dtype)
    rates: dict[str, Quantity] = {}
    for m, n, k in shapes:
        works = [_product(timer, dtype, (m, n, k), data) for _ in range(_rotation(timer, n * k * dtype.itemsize))]

        def work(works: list[Work] = works) -> None:
            for each in works:
                each()

        whole = time_work(timer, timer.graph(work), samples=5 if quick else 11)
        per_gemm = replace(whole, seconds=whole.seconds / len(works))
        source = f"{name.upper()} {m}x{n}x{k}, random data, {len(works)} weights in rotation"
        rates[f"{name}_{m}x{n}x{k}_tflops" if rates else f"{name}_tflops"] = rate(
            2.0 * m * n * k / 1e12, per_gemm, source
        )
    return rates


def fp8_type(timer: Timer) -> torch.dtype:
    """Return the device's E4M3: MI300 has its own encoding (fnuz); CUDA and newer AMD cards use the common one."""
    if torch.version.hip is not None and "gfx94" in torch.cuda.get_device_properties(timer.device).gcnArchName:
        return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, "fp8")


def _rotation(timer: Timer, weight_bytes: int) -> int:
    """Return how many weights rotate: enough to leave the last cache, as far as a third of free memory goes."""
    if not timer.has_graphs:
        return 1
    room = timer.free_bytes() // 3 // weight_bytes
    return max(1, min(math.ceil(CACHES * timer.cache_bytes / weight_bytes), room))


def _product(timer: Timer, dtype: torch.dtype, shape: Shape, data: Draw) -> Work:
    """Return one GEMM on operands of its own; the second is column-major, as `torch._scaled_mm` wants it."""
    m, n, k = shape

    def operand(rows: int, columns: int) -> Any:
        if dtype.itemsize > 1:
            return data(rows * columns, dtype, timer.device).view(rows, columns)
        wide = data(rows * columns, torch.bfloat16, timer.device).mul_(FP8_LARGEST / 2)
        return wide.to(dtype).view(rows, columns)

    a, b = operand(m, k), operand(n, k).t()
    if dtype.itemsize > 1:
        out = torch.empty(m, n, dtype=dtype, device=timer.device)
        return partial(torch.mm, a, b, out=out)
    scale = torch.ones((), device=timer.device)
    return partial(torch._scaled_mm, a, b, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True)


def measure_launch(timer: Timer, *, quick: bool) -> Report:
    """Measure what a kernel costs apart from its work, in us.

    `graph_node_us`: one node of a CUDA graph of dependent one-element kernels, below which no server's
    time per node (tau) can fall. `eager_launch_us`: the host's time to queue one kernel from Python.
    """
    samples = 7 if quick else 21
    number = torch.ones(1, device=timer.device)

    def launches(count: int) -> None:
        for _ in range(count):
            number.add_(1.0)

    def eager() -> float:
        timer.wait()
        begin = time.perf_counter()
        launches(LAUNCHES)
        passed = time.perf_counter() - begin
        timer.wait()
        return passed / LAUNCHES

    eager()
    timing = timing_of([eager() for _ in range(samples)])
    quantities = {"eager_launch_us": duration_us(timing, f"{LAUNCHES} one-element additions queued from Python")}
    if not timer.has_graphs:
        return Report(quantities=quantities, missing=("graph-node latency: this device has no CUDA graphs",))
    whole = time_work(timer, timer.graph(lambda: launches(NODES)), samples=samples)
    node = replace(whole, seconds=whole.seconds / NODES)
    quantities["graph_node_us"] = duration_us(node, f"CUDA graph of {NODES} dependent one-element additions")
    return Report(quantities=quantities)
