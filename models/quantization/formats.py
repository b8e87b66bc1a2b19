"""WeightFormat: how one matrix is stored, its scales and zero points counted; and the formats there are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the numbers are, which decides the kernels that can multiply them."""

    BF16 = "BF16"
    FP8 = "FP8"
    INT8 = "INT8"
    INT4 = "INT4"  # weights alone: activations stay BF16
    INT4_FP8 = "INT4, FP8 activations"
    NVFP4 = "NVFP4"
    MXFP4 = "MXFP4"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """One matrix of `rows` outputs and `columns` inputs: its numbers, and what stands beside them.

    A scale covers `scale_rows` outputs and `scale_columns` inputs, 0 for all of them; `zero_bits` is the zero point of
    each scale's group. `column_bytes` is per input (the order of GPTQ's groups), `matrix_bytes` per matrix (global
    scales, recorded shapes).
    """

    kind: Kind
    bits: int
    scale_bytes: int = 0
    scale_rows: int = 1
    scale_columns: int = 1
    zero_bits: int = 0
    column_bytes: int = 0
    matrix_bytes: int = 0

    @property
    def group(self) -> int:
        """Inputs that share a scale; a shard of a matrix must end on them (1: anywhere, as with one per channel)."""
        return self.scale_columns if self.scale_bytes and self.scale_columns > 1 else 1

    @property
    def is_blocked(self) -> bool:
        """Scales cover several outputs, too: shards must end on them in both directions."""
        return self.scale_rows > 1 and self.scale_columns > 1

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix in a checkpoint, exactly."""
        groups = 0
        if self.scale_bytes or self.zero_bits:
            groups = -(-rows // (self.scale_rows or rows)) * -(-columns // (self.scale_columns or columns))
        payload = rows * columns * self.bits // 8
        beside = groups * self.scale_bytes + groups * self.zero_bits // 8
        return payload + beside + columns * self.column_bytes + self.matrix_bytes

    def bytes_per_weight(self, columns: int) -> float:
        """Bytes a weight takes with its scales, of a matrix with `columns` inputs (1.000244 for FP8 blocks)."""
        if not (self.scale_bytes or self.zero_bits) or self.scale_rows == 0:
            return self.bits / 8
        covered = self.scale_rows * (self.scale_columns or columns)
        return self.bits / 8 + (self.scale_bytes + self.zero_bits / 8) / covered


BF16 = WeightFormat(kind=Kind.BF16, bits=16)
# DeepSeek's own: one fp32 `weight_scale_inv` per 128 x 128 block.
FP8_BLOCK = WeightFormat(kind=Kind.FP8, bits=8, scale_bytes=4, scale_rows=128, scale_columns=128)
FP8_TENSOR = WeightFormat(kind=Kind.FP8, bits=8, scale_bytes=4, scale_rows=0, scale_columns=0, matrix_bytes=4)
INT8_BLOCK = WeightFormat(kind=Kind.INT8, bits=8, scale_bytes=4, scale_rows=128, scale_columns=128)
INT8_CHANNEL = WeightFormat(kind=Kind.INT8, bits=8, scale_bytes=4, scale_columns=0)
FP8_CHANNEL = WeightFormat(kind=Kind.FP8, bits=8, scale_bytes=4, scale_columns=0)
# modelopt: one FP8 scale for 16 inputs, a global scale and the activations' one for each matrix.
NVFP4 = WeightFormat(kind=Kind.NVFP4, bits=4, scale_bytes=1, scale_columns=16, matrix_bytes=8)
# quark and the OCP format: one shared exponent (E8M0) for 32 inputs.
MXFP4 = WeightFormat(kind=Kind.MXFP4, bits=4, scale_bytes=1, scale_columns=32)
# One fp32 scale for 128 inputs, and two BF16 scales of activations a matrix (w4afp8.py, W4AFp8MoEMethod).
W4AFP8 = WeightFormat(kind=Kind.INT4_FP8, bits=4, scale_bytes=4, scale_columns=128, matrix_bytes=2)


def awq(group: int, *, zero_point: bool = True) -> WeightFormat:
    """AutoAWQ: packed 4-bit weights, an fp16 scale and a 4-bit zero point for each group of inputs."""
    return WeightFormat(
        kind=Kind.INT4, bits=4, scale_bytes=2, scale_columns=max(group, 0), zero_bits=4 if zero_point else 0
    )


def gptq(group: int, bits: int = 4) -> WeightFormat:
    """GPTQ: as AWQ, zero points always stored, and the group of every input (`g_idx`, int32)."""
    kind = Kind.INT4 if bits == 4 else Kind.INT8
    return WeightFormat(
        kind=kind, bits=bits, scale_bytes=2, scale_columns=max(group, 0), zero_bits=bits, column_bytes=4
    )


def packed_int4(group: int, *, symmetric: bool = True) -> WeightFormat:
    """compressed-tensors' pack-quantized: BF16 scales, the matrix's shape beside it as two int32."""
    return WeightFormat(
        kind=Kind.INT4,
        bits=4,
        scale_bytes=2,
        scale_columns=max(group, 0),
        zero_bits=0 if symmetric else 4,
        matrix_bytes=8,
    )
