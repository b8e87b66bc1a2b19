"""What a measuring child is asked and what it answers, as values that travel as JSON. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    SUSTAINED = "matrix rates, sustained"
    P2P = "GPU to GPU, all pairs"
    ALL_REDUCE = "all-reduce"
    SYMMETRIC = "all-reduce, symmetric memory"
    DEEP_GEMM = "DeepGEMM, block-scaled FP8"
    FLASH_MLA = "FlashMLA, decode"
    ABLATION = "what the measuring itself does"


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
    p2p_both_gb_s: Matrix | None = None
    all_to_all_gb_s: Quantity | None = None
    all_reduce: tuple[AllReduce, ...] = ()


# What a torch without CUDA says of itself.
CPU_BUILD = "is a CPU build"
# Takes what a child has so far, the moment it has it: a child that hangs or is killed later loses only the rest.
Emit = Callable[[Report], None]


def nowhere(part: Report) -> None:
    """Keep no partial result."""


def joined(parts: Sequence[Report]) -> Report:
    """Return the parts of one child's answer as one: the last of a matrix counts, everything else adds up."""
    whole = Report()
    for part in parts:
        whole = Report(
            quantities=whole.quantities | part.quantities,
            missing=tuple(dict.fromkeys((*whole.missing, *part.missing))),
            software=whole.software | part.software,
            devices=part.devices or whole.devices,
            p2p_gb_s=part.p2p_gb_s or whole.p2p_gb_s,
            p2p_latency_us=part.p2p_latency_us or whole.p2p_latency_us,
            p2p_both_gb_s=part.p2p_both_gb_s or whole.p2p_both_gb_s,
            all_to_all_gb_s=part.all_to_all_gb_s or whole.all_to_all_gb_s,
            all_reduce=tuple({_message(each): each for each in (*whole.all_reduce, *part.all_reduce)}.values()),
        )
    return whole


def _message(point: AllReduce) -> tuple[str, int, int]:
    return point.backend, point.ranks, point.message_bytes


def rate(amount: float, timing: Timing, source: str) -> Quantity:
    """Return `amount` per second of a timing as a measured quantity (amount already in its unit)."""
    return Quantity(value=amount / timing.seconds, basis=Basis.MEASURED, source=source, spread=round(timing.spread, 5))


def duration_us(timing: Timing, source: str) -> Quantity:
    """Return a timing in microseconds as a measured quantity."""
    return Quantity(value=timing.seconds * 1e6, basis=Basis.MEASURED, source=source, spread=round(timing.spread, 5))
