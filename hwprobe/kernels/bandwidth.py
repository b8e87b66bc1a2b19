"""How fast memory is: copy, read, triad over large buffers, and weights streamed by small-M GEMMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hwprobe.kernels.fits import Timing, fit_line
from hwprobe.kernels.report import Emit, Report, duration_us, nowhere, rate
from hwprobe.kernels.timing import Timer, random_tensor, time_work
from hwprobe.profile import Basis, Quantity

# Buffers this many times the last cache, so that none of a pass is still there from the one before.
CACHES = 10
GPU_BUFFER_BYTES = 2 * 2**30
QUICK_GPU_BUFFER_BYTES = 2**30
CPU_BUFFER_BYTES = 256 * 2**20
FLOAT_BYTES = 4

# Rows of the activations: one tensor-core tile, as many requests as a lightly loaded server decodes.
STREAM_ROWS = 16
# Input width of the weights: the hidden size of DeepSeek-V3.
STREAM_WIDTH = 7168
STREAM_MIB = (4, 16, 64, 256)
# Rows of another length than a multiple of this are aligned to 8 bytes or fewer, and cuBLAS may leave its TMA kernels.
ALIGNED_COLUMNS = 128


def measure_memory(timer: Timer, *, quick: bool, buffer_bytes: int | None = None) -> Report:
    """Measure STREAM's copy and triad and a pure read, in decimal GB/s of bytes read plus bytes written.

    The read is the fastest of a sum, a matrix-vector product and a maximum (any may be bound by arithmetic on some
    device); each is kept under its own name. `buffer_bytes` overrides the size of one buffer, for tests.
    """
    count = (buffer_bytes or _buffer_bytes(timer, quick)) // FLOAT_BYTES // STREAM_WIDTH * STREAM_WIDTH
    size = count * FLOAT_BYTES
    a = random_tensor(count, torch.float32, timer.device)
    b, c = a.clone(), torch.empty_like(a)
    matrix, vector = a.view(-1, STREAM_WIDTH), random_tensor(STREAM_WIDTH, torch.float32, timer.device)
    product = torch.empty(matrix.shape[0], device=timer.device)
    samples = 5 if quick else 15

    def timed(work: Any) -> Timing:
        return time_work(timer, work, samples=samples)

    source = f"float32 buffers of {size / 2**20:.0f} MiB, median of {samples}"
    copy = timed(lambda: c.copy_(a))
    triad = timed(lambda: torch.add(a, b, alpha=3.0, out=c))
    reads = {
        "sum": timed(a.sum),
        "mv": timed(lambda: torch.mv(matrix, vector, out=product)),
        "amax": timed(a.amax),
    }
    kernel, read = min(reads.items(), key=lambda item: item[1].seconds)
    return Report(
        quantities={
            "hbm_gb_s": rate(size / 1e9, read, f"read by {kernel}, the fastest of {', '.join(reads)}; {source}"),
            "hbm_copy_gb_s": rate(2 * size / 1e9, copy, f"copy, {source}"),
            "hbm_triad_gb_s": rate(3 * size / 1e9, triad, f"triad, {source}"),
        }
        | {f"hbm_read_{name}_gb_s": rate(size / 1e9, timing, f"{name}, {source}") for name, timing in reads.items()}
    )


def _buffer_bytes(timer: Timer, quick: bool) -> int:
    gpu = QUICK_GPU_BUFFER_BYTES if quick else GPU_BUFFER_BYTES
    buffer_bytes = max(CACHES * timer.cache_bytes, gpu if timer.device.type == "cuda" else CPU_BUFFER_BYTES)
    return min(buffer_bytes, timer.free_bytes() // 5)


def measure_stream(
    timer: Timer,
    *,
    quick: bool,
    sizes_mib: Sequence[int] | None = None,
    working_set_bytes: int | None = None,
    emit: Emit = nowhere,
) -> Report:
    """Measure how fast a GEMM of few rows streams its weights: the ceiling of the model's eta_w.

    Matrices of each size rotate through a working set larger than any cache, inside one CUDA graph where
    there are graphs. A line through the times gives the rate (GB/s) and the fixed cost of one GEMM (us); how far each
    size lies off the line is in its source.
    """
    gpu = timer.device.type == "cuda"
    sizes = sizes_mib or (STREAM_MIB if gpu else STREAM_MIB[:3])
    total = working_set_bytes or max(CACHES * timer.cache_bytes, 2 * max(sizes) * 2**20)
    weights = random_tensor(min(total, timer.free_bytes() // 3) // 2, torch.bfloat16, timer.device)
    samples = 5 if quick else 15
    method = f"BF16 GEMMs of {STREAM_ROWS} rows, weights of {weights.numel() * 2 / 2**20:.0f} MiB in rotation"
    points: dict[int, tuple[int, Timing]] = {}
    quantities: dict[str, Quantity] = {}
    for mib in sizes:
        size, timing = points[mib] = stream_once(timer, weights, mib * 2**20, samples)
        quantities[f"stream_{mib}mib_gb_s"] = rate(size / 1e9, timing, f"{method}, {size / 2**20:.2f} MiB each")
        emit(Report(quantities=dict(quantities)))
    try:
        line = fit_line([size for size, _ in points.values()], [timing.seconds for _, timing in points.values()])
    except ValueError as error:
        return Report(quantities=quantities, missing=(f"weight streaming rate: {error}",))
    source = f"line through {min(sizes)} to {max(sizes)} MiB; {method}"
    for mib, (size, timing) in points.items():
        quantity = quantities[f"stream_{mib}mib_gb_s"]
        off = f"{100 * line.residual(size, timing.seconds):+.1f} % off the line"
        quantities[f"stream_{mib}mib_gb_s"] = replace(quantity, source=f"{quantity.source}; {off}")
    spread = max(timing.spread for _, timing in points.values())
    quantities["stream_gb_s"] = Quantity(
        value=line.bytes_per_s / 1e9, basis=Basis.MEASURED, source=source, spread=round(spread, 5)
    )
    if line.latency_s > 0.0:
        fixed = Timing(seconds=line.latency_s, spread=spread, samples=samples)
        quantities["stream_fixed_us"] = duration_us(fixed, source)
    return Report(quantities=quantities)


def stream_once(
    timer: Timer, weights: Any, wanted_bytes: int, samples: int, aligned: int = ALIGNED_COLUMNS
) -> tuple[int, Timing]:
    """Return the bytes of one matrix and the time of one GEMM with it; its columns are a multiple of `aligned`."""
    columns = max(1, wanted_bytes // 2 // STREAM_WIDTH // aligned) * aligned
    elements = columns * STREAM_WIDTH
    number = max(1, weights.numel() // elements)
    matrices = [weights[i * elements : (i + 1) * elements].view(columns, STREAM_WIDTH) for i in range(number)]
    rows = random_tensor(STREAM_ROWS * STREAM_WIDTH, torch.bfloat16, timer.device).view(STREAM_ROWS, STREAM_WIDTH)
    out = torch.empty(STREAM_ROWS, columns, dtype=torch.bfloat16, device=timer.device)

    def pass_over_all() -> None:
        for matrix in matrices:
            torch.mm(rows, matrix.t(), out=out)

    whole = time_work(timer, timer.graph(pass_over_all), samples=samples)
    return elements * 2, Timing(seconds=whole.seconds / number, spread=whole.spread, samples=whole.samples)
