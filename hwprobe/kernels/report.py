"""What a measuring child is asked and what it answers, as values that travel as JSON. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hwprobe.choices import DeviceName
from hwprobe.kernels.fits import Timing
from hwprobe.profile import AllReduce, Basis, Matrix, Quantity


class Step(StrEnum):
    """The measurements, each in a child process of its own; the value says what it measures."""

    DEVICES = "what torch sees"
    MEMORY = "memory copy, read, triad"
    STREAM = "weight streaming"
    LAUNCH = "launch cost"
    GEMM = "matrix rates"
    P2P = "GPU to GPU, all pairs"
    ALL_REDUCE = "all-reduce"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """One child's task. `ranks` is the number of processes of an all-reduce."""

    step: Step
    device: DeviceName
    quick: bool
    ranks: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchDevice:
    """A GPU as torch sees it: what is known of a card when there is no NVML (ROCm)."""

    name: str
    memory_mib: float
    sm_count: int
    compute_capability: str | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One child's answer; `missing` says what this device or this torch cannot measure."""

    quantities: dict[str, Quantity] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    software: dict[str, str] = field(default_factory=dict)
    devices: tuple[TorchDevice, ...] = ()
    p2p_gb_s: Matrix | None = None
    p2p_latency_us: Matrix | None = None
    all_reduce: tuple[AllReduce, ...] = ()


def rate(amount: float, timing: Timing, source: str) -> Quantity:
    """Return `amount` per second of a timing as a measured quantity (amount already in its unit)."""
    return Quantity(value=amount / timing.seconds, basis=Basis.MEASURED, source=source, spread=round(timing.spread, 5))


def duration_us(timing: Timing, source: str) -> Quantity:
    """Return a timing in microseconds as a measured quantity."""
    return Quantity(value=timing.seconds * 1e6, basis=Basis.MEASURED, source=source, spread=round(timing.spread, 5))
