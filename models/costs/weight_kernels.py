"""What multiplies weights of each format on a machine: bytes a weight, the peak that counts, and shares of it reached.

Shares are relative to what the engine profile says of FP8 kernels (eta_w, eta_pf, and the fractions in kernels.py).
Where records of a kernel are published they are fitted (tools/fit_kernels.py writes models/data/kernel_shares.json);
elsewhere they are 1, and the errors are those of a kernel that nobody has measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

from hwprobe.files import decode_json
from models.architecture import ModelArchitecture
from models.layout import Array
from models.machine import Machine
from models.quantization.formats import BF16, Kind, WeightFormat

SHARES_FILE = "data/kernel_shares.json"  # below models/
# Peak of INT8 over BF16 on GPUs without FP8 (data sheet of the A100: 624 against 312), of FP4 over FP8 on those that
# have it (B200: 9 against 4.5 PFLOP/s dense; MI355X: 10 against 5).
INT8_OVER_BF16 = 2.0
FP4_OVER_FP8 = 2.0


class Kernel(StrEnum):
    """The kernels that multiply experts, by what SGLang runs for a format on a machine."""

    BF16 = "BF16"
    FP8 = "FP8"
    INT8 = "INT8"
    MARLIN = "Marlin"  # 4-bit weights as BF16, where no unit takes them
    W4A8 = "W4A8"
    TRTLLM_FP4 = "TRT-LLM FP4"
    AITER_FP4 = "AITER FP4"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShares:
    """What a kernel reaches relative to FP8's on the same machine: of the weights' stream, and of matrix FLOP/s.

    With `own_rate` the rate is a share of the peak itself: TensorRT-LLM's kernels have no part in what the engine
    profiles say of DeepGEMM's and Triton's. `first_wave_s` is the wait of a benchmark's first requests (None: as the
    engine profile has it). The errors are one standard deviation of the relative error that remains in decode steps and
    in prefill. `records` were fitted, `left_out` were not.
    """

    stream: float = 1.0
    rate: float = 1.0
    own_rate: bool = False
    first_wave_s: float | None = None
    decode_error: float = 0.0
    prefill_error: float = 0.0
    records: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareFile:
    """kernel_shares.json: the fitted kernels by name, what sparse attention's equations leave, and the source."""

    kernels: dict[str, KernelShares]
    sparse: KernelShares
    source: str


def matrix_rate(peak_flops: float | Array, fraction: float, ceiling_flops: float) -> float | Array:
    """FLOP/s of a matrix kernel: harmonic in `fraction x peak` and a ceiling of its own."""
    return 1.0 / (1.0 / (fraction * peak_flops) + 1.0 / ceiling_flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightKernel:
    """One matrix product's weights: bytes each with scales, peak FLOP/s, and the shares of stream and rate reached.

    `own_rate`: the share is of the peak itself; what is known of FP8's kernels says nothing of this one.
    """

    weight_bytes: float
    flops: float
    stream_share: float = 1.0
    rate_share: float = 1.0
    own_rate: bool = False

    def reached(self, fraction: float, ceiling_flops: float, efficiency: float = 1.0) -> float | Array:
        """Return the FLOP/s reached: of FP8's kernels, `efficiency` times their rate under a fraction and a ceiling."""
        if self.own_rate:
            return self.rate_share * self.flops
        return efficiency * self.rate_share * matrix_rate(self.flops, fraction, ceiling_flops)


# Of a kernel without records enough. Decode: stated; single runs of W4A8 and INT8 lie within it. Prefill: as far as the
# two fitted kernels were from FP8's equations on average (AITER's 5 %, TensorRT-LLM's 98 %: docs/log.md).
UNMEASURED = KernelShares(decode_error=0.25, prefill_error=0.7)
_FILE = decode_json(files("models").joinpath(SHARES_FILE).read_bytes(), ShareFile, SHARES_FILE)
SPARSE = _FILE.sparse
SHARES: dict[Kernel, KernelShares] = {
    **dict.fromkeys(Kernel, UNMEASURED),
    # FP8's are the engine profiles themselves; BF16's are taken as FP8's, whose equations share their form.
    Kernel.FP8: KernelShares(),
    Kernel.BF16: KernelShares(),
    **{Kernel(name): shares for name, shares in _FILE.kernels.items()},
}


def running_kernel(kind: Kind, machine: Machine) -> Kernel:
    """Return what multiplies weights of a kind on a machine."""
    if kind is Kind.INT4:
        return Kernel.MARLIN
    if kind in (Kind.NVFP4, Kind.MXFP4):
        return (Kernel.AITER_FP4 if machine.is_amd else Kernel.TRTLLM_FP4) if machine.has_fp4 else Kernel.MARLIN
    return {Kind.BF16: Kernel.BF16, Kind.FP8: Kernel.FP8, Kind.INT8: Kernel.INT8, Kind.INT4_FP8: Kernel.W4A8}[kind]


def shares_of(arch: ModelArchitecture, machine: Machine) -> KernelShares:
    """Return the shares of what multiplies a checkpoint's routed experts."""
    return SHARES[running_kernel(arch.weight_formats.kind, machine)]


def kernel_of(form: WeightFormat, arch: ModelArchitecture, machine: Machine) -> WeightKernel:
    """Return what multiplies weights of a format on this machine."""
    shares = SHARES[running_kernel(form.kind, machine)]
    return WeightKernel(
        weight_bytes=arch.bytes_per_weight(form),
        flops=_peak(form.kind, machine),
        stream_share=shares.stream,
        rate_share=shares.rate,
        own_rate=shares.own_rate,
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
