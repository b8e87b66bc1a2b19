"""What multiplies weights of each format on a machine: bytes a weight, the peak that counts, and shares of it reached.

Shares are relative to what the engine profile says of FP8 kernels (eta_w, and the fractions in kernels.py). Those of 1
are not measured: a band admits it (models/serving/uncertainty.py, "weight format").
"""

from __future__ import annotations

from dataclasses import dataclass

from models.architecture import ModelArchitecture
from models.machine import Machine
from models.quantization.formats import BF16, Kind, WeightFormat

# Peak of INT8 over BF16 on GPUs without FP8 (data sheet of the A100: 624 against 312), of FP4 over FP8 on those that
# have it (B200: 9 against 4.5 PFLOP/s dense; MI355X: 10 against 5).
INT8_OVER_BF16 = 2.0
FP4_OVER_FP8 = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightKernel:
    """One matrix product's weights: bytes each with scales, peak FLOP/s, and the shares of stream and peak reached."""

    weight_bytes: float
    flops: float
    stream_share: float = 1.0
    rate_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShares:
    """What kernels of a kind reach, relative to FP8's on the same machine; `source` says how that is known."""

    stream: float
    rate: float
    source: str


SHARES = {
    Kind.BF16: KernelShares(stream=1.0, rate=1.0, source="cuBLAS and Triton: as FP8, not measured apart"),
    Kind.FP8: KernelShares(stream=1.0, rate=1.0, source="engine profiles"),
    Kind.INT8: KernelShares(stream=1.0, rate=1.0, source="Triton and CUTLASS INT8: as FP8, not measured apart"),
    Kind.INT4: KernelShares(stream=1.0, rate=1.0, source="Marlin and Triton w4a16: not measured apart"),
    Kind.INT4_FP8: KernelShares(stream=1.0, rate=1.0, source="CUTLASS w4a8: not measured apart"),
    Kind.NVFP4: KernelShares(stream=1.0, rate=1.0, source="TensorRT-LLM's FP4 MoE: not measured apart"),
    Kind.MXFP4: KernelShares(stream=1.0, rate=1.0, source="AITER's FP4 MoE: not measured apart"),
}


def kernel_of(form: WeightFormat, arch: ModelArchitecture, machine: Machine) -> WeightKernel:
    """Return what multiplies weights of a format on this machine."""
    shares = SHARES[form.kind]
    return WeightKernel(
        weight_bytes=arch.bytes_per_weight(form),
        flops=_peak(form.kind, machine),
        stream_share=shares.stream,
        rate_share=shares.rate,
    )


def bf16_kernel(machine: Machine) -> WeightKernel:
    """Return what multiplies BF16 weights: absorbed kv_b, router, head."""
    return WeightKernel(weight_bytes=BF16.bits / 8, flops=machine.bf16_flops)


def _peak(kind: Kind, machine: Machine) -> float:
    """Peak FLOP/s of the arithmetic a kind is multiplied in: 4-bit weights become BF16 where no unit takes them."""
    if kind in (Kind.BF16, Kind.INT4):
        return machine.bf16_flops
    if kind is Kind.INT8:
        return machine.fp8_flops or INT8_OVER_BF16 * machine.bf16_flops
    if kind in (Kind.NVFP4, Kind.MXFP4):
        return FP4_OVER_FP8 * machine.gemm_flops if machine.has_fp4 else machine.bf16_flops
    return machine.gemm_flops
