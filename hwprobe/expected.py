"""How much of its data sheet a healthy card reaches, and the verdict on one that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# A card this far below the median of its siblings is named; repeats of one card agree within 3 %.
SIBLING_TOLERANCE = 0.05
# More than the sheet by this much is another card or another sheet, not a good day.
ABOVE_SHEET = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheetShare:
    """What fraction of the data sheet a healthy card measures.

    `fraction` is the reference's (H200 where known), `error` how well that is known, `low` the
    fraction below which something is wrong.
    """

    fraction: float
    error: float
    low: float


# Sources: HBM copy 4.3 of 4.8 TB/s and BF16 788 of 989 TFLOP/s were measured on one H200; the read fraction lies
# between that copy and the KV-stream slope of FA3 (0.93 H200, 0.91 H100). FP8 (cuBLAS, fast accumulation, about 1.35 of
# 1.98 PFLOP/s) and P2P (370-390 of 450 GB/s) are estimates without a published table: hence their wide errors.
EXPECTED = {
    "hbm_gb_s": DataSheetShare(fraction=0.91, error=0.02, low=0.85),
    "hbm_copy_gb_s": DataSheetShare(fraction=0.90, error=0.02, low=0.83),
    "hbm_triad_gb_s": DataSheetShare(fraction=0.90, error=0.03, low=0.83),
    "bf16_tflops": DataSheetShare(fraction=0.80, error=0.03, low=0.70),
    "fp8_tflops": DataSheetShare(fraction=0.68, error=0.10, low=0.50),
    "nvlink_gb_s": DataSheetShare(fraction=0.84, error=0.08, low=0.72),
}


def verdict(quantity: str, fraction: float | None) -> str:
    """Return "normal", or what is wrong with a measurement at this fraction of the data sheet."""
    expected = EXPECTED.get(quantity)
    if expected is None or fraction is None:
        return ""
    if fraction > ABOVE_SHEET:
        return "above its data sheet: is it the card its name says?"
    if fraction < expected.low:
        return f"low: a healthy card reaches {expected.low:.0%} or more"
    return "normal"


def stragglers(values: Sequence[float | None]) -> dict[int, float]:
    """Return the positions that lie more than SIBLING_TOLERANCE below the median, and by how much."""
    measured = [value for value in values if value is not None]
    if len(measured) < 2:
        return {}
    middle = median(measured)
    below = {place: 1.0 - value / middle for place, value in enumerate(values) if value is not None}
    return {place: gap for place, gap in below.items() if gap > SIBLING_TOLERANCE}
