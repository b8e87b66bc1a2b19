"""How fast matrices multiply and kernels start: GEMM rates, graph-node latency, eager launch cost."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from hwprobe.kernels.fits import Timing, timing_of
from hwprobe.kernels.report import Report, duration_us, rate
from hwprobe.kernels.timing import Timer, random_tensor, time_work
from hwprobe.profile import Quantity

Shape = tuple[int, int, int]

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
NODES = 1000
LAUNCHES = 500
FP8_CAPABILITY = (8, 9)
FP8_LARGEST = 448.0


def measure_gemm(timer: Timer, *, quick: bool, shapes: tuple[Shape, ...] | None = None) -> Report:
    """Measure dense matrix rates in TFLOP/s: BF16, and FP8 on GPUs that have it (FP32 on a CPU)."""
    gpu = timer.device.type == "cuda"
    shapes = shapes or (GPU_SHAPES if gpu else CPU_SHAPES)
    if quick:
        shapes = shapes[:1]
    quantities = _gemm_rates(timer, "bf16", torch.bfloat16, shapes, quick)
    if not gpu:
        rates = _gemm_rates(timer, "fp32", torch.float32, shapes, quick)
        return Report(quantities=quantities | rates, missing=("FP8: only GPUs have it",))
    reason = fp8_missing(torch.cuda.get_device_capability(timer.device), torch.version.hip is not None)
    if reason is None:
        try:
            return Report(quantities=quantities | fp8_rates(timer, shapes, quick=quick))
        except RuntimeError as error:  # torch's refusal of a type, layout or device
            reason = f"torch {torch.__version__} refuses ({str(error).splitlines()[0]})"
    return Report(quantities=quantities, missing=(f"FP8: {reason}",))


def fp8_missing(capability: tuple[int, int], rocm: bool) -> str | None:
    """Return why FP8 GEMMs cannot be measured on a GPU of this compute capability, or None."""
    if not rocm and capability < FP8_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} has none"
    return None if hasattr(torch, "_scaled_mm") else f"torch {torch.__version__} has no _scaled_mm; upgrade torch"


def _gemm_rates(
    timer: Timer, name: str, dtype: torch.dtype, shapes: tuple[Shape, ...], quick: bool
) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {}
    for m, n, k in shapes:
        a = random_tensor(m * k, dtype, timer.device).view(m, k)
        b = random_tensor(n * k, dtype, timer.device).view(n, k).t()
        out = torch.empty(m, n, dtype=dtype, device=timer.device)

        def work(a: Any = a, b: Any = b, out: Any = out) -> Any:
            return torch.mm(a, b, out=out)

        _add(found, name, (m, n, k), time_work(timer, work, samples=_samples(quick)))
    return found


def fp8_rates(timer: Timer, shapes: tuple[Shape, ...], *, quick: bool) -> dict[str, Quantity]:
    """Measure FP8 E4M3 GEMMs with one scale per tensor, BF16 output and fast accumulation (the peak).

    `torch._scaled_mm` takes the second matrix column-major and dimensions that 16 divides.
    """
    # MI300 has its own encoding (fnuz); CUDA and newer AMD cards use the common one.
    amd = torch.version.hip is not None and "gfx94" in torch.cuda.get_device_properties(timer.device).gcnArchName
    fp8 = torch.float8_e4m3fnuz if amd else torch.float8_e4m3fn
    one = torch.ones((), device=timer.device)
    found: dict[str, Quantity] = {}

    def quantized(rows: int, columns: int) -> Any:
        wide = random_tensor(rows * columns, torch.bfloat16, timer.device).mul_(FP8_LARGEST / 2)
        return wide.to(fp8).view(rows, columns)

    for m, n, k in shapes:
        a, b = quantized(m, k), quantized(n, k).t()

        def work(a: Any = a, b: Any = b) -> Any:
            return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

        _add(found, "fp8", (m, n, k), time_work(timer, work, samples=_samples(quick)))
    return found


def _samples(quick: bool) -> int:
    return 5 if quick else 11


def _add(found: dict[str, Quantity], name: str, shape: Shape, timing: Timing) -> None:
    """Add the rate of one GEMM; the first of a type is that type's headline figure."""
    m, n, k = shape
    quantity = rate(2.0 * m * n * k / 1e12, timing, f"{name.upper()} {m}x{n}x{k}, random data")
    found[f"{name}_{m}x{n}x{k}_tflops" if found else f"{name}_tflops"] = quantity


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
