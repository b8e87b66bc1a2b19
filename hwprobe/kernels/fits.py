"""Small statistics of measurements, without torch: medians with spread, a latency-plus-rate line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call: median over samples; `spread` is the interquartile range over the median."""

    seconds: float
    spread: float
    samples: int


def timing_of(samples: Sequence[float]) -> Timing:
    """Return the median and spread of per-call seconds."""
    low, middle, high = np.percentile(np.asarray(samples), (25.0, 50.0, 75.0))
    return Timing(seconds=float(middle), spread=float((high - low) / middle), samples=len(samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFit:
    """time = latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float

    def residual(self, size_bytes: float, seconds: float) -> float:
        """Return measured over fitted time of one size, less one: large ones say that no line fits."""
        return seconds / (self.latency_s + size_bytes / self.bytes_per_s) - 1.0


def fit_line(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> LineFit:
    """Fit latency and rate to times of several sizes, relative errors weighing alike, latency >= 0.

    Raises ValueError when the times do not grow with the sizes: then no rate follows from them.
    """
    sizes, times = np.asarray(sizes_bytes, dtype=float), np.asarray(seconds, dtype=float)
    # Dividing each row by its time makes the residuals relative.
    rows = np.stack([1.0 / times, sizes / times], axis=1)
    (latency, per_byte), *_ = np.linalg.lstsq(rows, np.ones_like(times), rcond=None)
    if latency < 0.0:
        share = sizes / times
        latency, per_byte = 0.0, float(share.sum() / (share**2).sum())
    if per_byte <= 0.0:
        raise ValueError("the times do not grow with the sizes")
    return LineFit(latency_s=float(latency), bytes_per_s=float(1.0 / per_byte))
