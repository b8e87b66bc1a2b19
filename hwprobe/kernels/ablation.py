"""What the measuring itself does to its figures: queueing, alignment, graphs, caches, the data. For a first GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hwprobe.kernels.bandwidth import ALIGNED_COLUMNS, CACHES, STREAM_MIB, stream_once
from hwprobe.kernels.compute import CPU_SHAPES, FP8_LARGEST, GPU_SHAPES, Shape, gemm_rates
from hwprobe.kernels.fits import timing_of
from hwprobe.kernels.report import Emit, Report, duration_us, nowhere, rate
from hwprobe.kernels.timing import CudaTimer, Timer, Work, random_tensor, time_work
from hwprobe.profile import Basis, Quantity

QUEUED = 50
QUEUED_ON_CPU = 3  # there a call is done when it returns
SHORT_SHAPES: tuple[Shape, ...] = GPU_SHAPES[-2:]
ZERO_SHAPE: Shape = (8192, 8192, 8192)


def measure_ablation(
    timer: Timer,
    *,
    quick: bool,
    stream_mib: tuple[int, ...] | None = None,
    shapes: tuple[Shape, ...] | None = None,
    emit: Emit = nowhere,
) -> Report:
    """Measure what could distort the probe's figures, each as two figures that should agree.

    Cycles of the spin kernel in a second; the host's time to queue one call; weight streaming with the asked number of
    columns and with the aligned one, with the kernels that ran; GEMMs of 256 rows queued or in a graph, with weights
    warm in the cache or cold; a GEMM of zeros.
    """
    gpu = timer.device.type == "cuda"
    stream_mib = stream_mib or (STREAM_MIB if gpu else STREAM_MIB[:2])
    shapes = shapes or (SHORT_SHAPES if gpu else CPU_SHAPES[1:])
    quantities: dict[str, Quantity] = {}
    for name, quantity in _all(timer, quick, stream_mib, shapes):
        quantities[f"ablation_{name}"] = quantity
        emit(Report(quantities=dict(quantities)))
    return Report(quantities=quantities)


def _all(
    timer: Timer, quick: bool, stream_mib: tuple[int, ...], shapes: tuple[Shape, ...]
) -> Iterator[tuple[str, Quantity]]:
    samples = 5 if quick else 11
    if isinstance(timer, CudaTimer):
        hertz = timer.spin_hz()
        yield "spin_mhz", Quantity(value=hertz / 1e6, basis=Basis.MEASURED, source="spin kernel against events")
    yield from _queueing(timer, samples)
    yield from _alignment(timer, samples, stream_mib)
    for shape in shapes:
        yield from _short(timer, samples, shape)
    zeros = (shapes[0] if timer.device.type == "cpu" else ZERO_SHAPE,)
    (rate_of_zeros,) = gemm_rates(timer, torch.bfloat16, zeros, quick=quick, data=_zeros).values()
    yield "bf16_zeros_tflops", rate_of_zeros


def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Any:
    return torch.zeros(count, dtype=dtype, device=device)


def _queueing(timer: Timer, samples: int) -> Iterator[tuple[str, Quantity]]:
    """Yield the host's us to queue one mm, one _scaled_mm and one graph replay."""
    width = 256 if timer.has_graphs else 64
    small = random_tensor(width * width, torch.bfloat16, timer.device).view(width, width)
    out = torch.empty_like(small)
    works: dict[str, Work] = {"mm": partial(torch.mm, small, small, out=out)}
    works["replay"] = timer.graph(works["mm"])
    if hasattr(torch, "_scaled_mm"):
        eight = (small * FP8_LARGEST).to(torch.float8_e4m3fn)
        scale = torch.ones((), device=timer.device)
        works["scaled_mm"] = partial(
            torch._scaled_mm, eight, eight.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
        )
    for name, work in works.items():
        try:
            work()
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise
            continue
        yield f"queue_{name}_us", duration_us(timing_of([_queue_s(timer, work) for _ in range(samples)]), "host")


def _queue_s(timer: Timer, work: Work) -> float:
    timer.wait()
    begin = time.perf_counter()
    count = QUEUED if timer.has_graphs else QUEUED_ON_CPU
    for _ in range(count):
        work()
    passed = time.perf_counter() - begin
    timer.wait()
    return passed / count


def _alignment(timer: Timer, samples: int, sizes: tuple[int, ...]) -> Iterator[tuple[str, Quantity]]:
    caches = CACHES * timer.cache_bytes if timer.has_graphs else 0
    total = min(max(caches, 2 * max(sizes) * 2**20), timer.free_bytes() // 3)
    weights = random_tensor(total // 2, torch.bfloat16, timer.device)
    for mib in sizes:
        for word, columns in (("as_asked", 1), ("aligned", ALIGNED_COLUMNS)):
            size, timing = stream_once(timer, weights, mib * 2**20, samples, columns)
            ran = kernels_of(timer, partial(stream_once, timer, weights, mib * 2**20, 1, columns))
            source = f"{size / 2**20:.2f} MiB each; kernels {ran or 'not named'}"
            yield f"stream_{mib}mib_{word}_gb_s", rate(size / 1e9, timing, source)


def kernels_of(timer: Timer, work: Work) -> str:
    """Return the names of the GEMM kernels that ran on a GPU, by torch's profiler; '' where it names none."""
    if timer.device.type != "cuda":
        return ""
    try:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            work()
            timer.wait()
        names = {str(event.key)[:80] for event in trace.key_averages()}
    except (ImportError, RuntimeError):
        return ""
    skip = ("mem", "cuda", "elementwise", "distribution", "spin")
    return ", ".join(sorted(name for name in names if not any(word in name.lower() for word in skip)))


def _short(timer: Timer, samples: int, shape: Shape) -> Iterator[tuple[str, Quantity]]:
    """Yield us of a GEMM of few rows: eager or in a graph, its weights warm in the cache or cold."""
    m, n, k = shape
    rows = random_tensor(m * k, torch.bfloat16, timer.device).view(m, k)
    number = max(2, min(64, -(-CACHES * timer.cache_bytes // (2 * n * k)))) if timer.has_graphs else 2
    weights = [random_tensor(n * k, torch.bfloat16, timer.device).view(n, k).t() for _ in range(number)]
    out = torch.empty(m, n, dtype=torch.bfloat16, device=timer.device)

    def over(rotation: list[Any]) -> None:
        for each in rotation:
            torch.mm(rows, each, out=out)

    for cache, rotation in (("warm", weights[:1] * number), ("cold", weights)):
        work: Work = partial(over, rotation)
        for how, ready in (("eager", work), ("graph", timer.graph(work))):
            whole = time_work(timer, ready, samples=samples)
            timing = timing_of([whole.seconds / number])
            yield f"gemm_{m}x{n}x{k}_{how}_{cache}_us", duration_us(timing, f"BF16, {number} in a row")
