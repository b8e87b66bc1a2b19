"""Measurements as a reader wants them: per quantity over all GPUs, against the data sheet, with a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hwprobe.expected import stragglers, verdict
from hwprobe.profile import AllReduce, Basis, HardwareProfile, Quantity

# In the order of the table; quantities without a line here follow under their own names.
LABELS = {
    "hbm_gb_s": "memory read",
    "hbm_copy_gb_s": "memory copy",
    "hbm_triad_gb_s": "memory triad",
    "stream_gb_s": "weight streaming, 16 rows",
    "stream_fixed_us": "weight streaming, fixed cost",
    "bf16_tflops": "BF16 GEMM",
    "fp32_tflops": "FP32 GEMM",
    "fp8_tflops": "FP8 GEMM",
    "bf16_sustained_tflops": "BF16 GEMM, sustained",
    "fp8_sustained_tflops": "FP8 GEMM, sustained",
    "fp8_block_tflops": "FP8 GEMM, block-scaled (DeepGEMM)",
    "graph_node_us": "CUDA graph node",
    "eager_launch_us": "eager launch",
    "nvlink_gb_s": "GPU to GPU, slowest pair",
}
UNITS = {"_gb_s": "GB/s", "_tflops": "TFLOP/s", "_us": "us"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFinding:
    """One measured quantity of the host or of all GPUs; `value` is the median over them.

    `worst` is the slowest GPU's, `lagging` the GPUs far below their siblings with the gap.
    """

    where: str
    quantity: str
    label: str
    value: float
    worst: float
    sheet: float | None
    spread: float | None
    lagging: dict[int, float]
    remark: str = ""

    @property
    def unit(self) -> str:
        return next((unit for ending, unit in UNITS.items() if self.quantity.endswith(ending)), "")

    @property
    def is_time(self) -> bool:
        return self.unit == "us"

    @property
    def fraction(self) -> float | None:
        return self.value / self.sheet if self.sheet else None

    @property
    def verdict(self) -> str:
        """Return the verdict on the median, every GPU that lags, and the remark."""
        lag = [f"GPU {gpu} is {gap:.0%} below its siblings" for gpu, gap in self.lagging.items()]
        return "; ".join(filter(None, [verdict(self.quantity, self.fraction), *lag, self.remark]))


def findings(profile: HardwareProfile) -> tuple[ProbeFinding, ...]:
    """Return everything measured in a profile, the host first, well-known quantities before others."""
    everything: list[ProbeFinding] = []
    if profile.host:
        everything.extend(_findings("host", [profile.host.measured]))
    if profile.gpus:
        where = f"{len(profile.gpus)} GPUs" if len(profile.gpus) > 1 else "GPU"
        everything.extend(_findings(where, [_measured(profile, index) for index in range(len(profile.gpus))]))
    return (*everything, *map(_collective, profile.all_reduce))


def _measured(profile: HardwareProfile, index: int) -> Mapping[str, Quantity]:
    gpu = profile.gpus[index]
    link = gpu.nvlink_gb_s
    return gpu.measured | ({"nvlink_gb_s": link} if link and link.basis is Basis.MEASURED else {})


def _findings(where: str, devices: Sequence[Mapping[str, Quantity]]) -> Iterator[ProbeFinding]:
    names = list(dict.fromkeys([*LABELS, *(name for device in devices for name in device)]))
    for name in names:
        values = [device.get(name) for device in devices]
        quantities = [value for value in values if value is not None]
        if not quantities:
            continue
        is_time = name.endswith("_us")
        numbers = [None if value is None else value.value for value in values]
        yield ProbeFinding(
            where=where,
            quantity=name,
            label=LABELS.get(name, name),
            value=median(value.value for value in quantities),
            worst=(max if is_time else min)(value.value for value in quantities),
            sheet=next((value.sheet for value in quantities if value.sheet), None),
            spread=max((value.spread for value in quantities if value.spread is not None), default=None),
            lagging={} if is_time else stragglers(numbers),
        )


def _collective(point: AllReduce) -> ProbeFinding:
    return ProbeFinding(
        where=f"{point.ranks} ranks",
        quantity=f"all_reduce_{point.backend.replace(' ', '_')}_{point.message_bytes}_bytes_us",
        label=f"all-reduce {point.backend}, {point.message_bytes:,} B",
        value=point.time_us.value,
        worst=point.time_us.value,
        sheet=None,
        spread=point.time_us.spread,
        lagging={},
        remark=f"bus {point.bus_gb_s:,.1f} GB/s",
    )


# Repeats of a quiet GPU agree within this; a smaller change says nothing.
NOISE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One quantity in two profiles; `change` is b/a - 1, None where one of them lacks it."""

    where: str
    quantity: str
    label: str
    unit: str
    a: float | None
    b: float | None
    change: float | None
    verdict: str


def compare(a: HardwareProfile, b: HardwareProfile) -> tuple[Change, ...]:
    """Return every measured quantity of two profiles side by side; a change within noise is called so."""
    a_findings = {_key(finding): finding for finding in findings(a)}
    b_findings = {_key(finding): finding for finding in findings(b)}
    return tuple(_change(a_findings.get(key), b_findings.get(key)) for key in dict.fromkeys([*a_findings, *b_findings]))


def _key(finding: ProbeFinding) -> tuple[str, str]:
    """Match GPUs with any number of GPUs, ranks with the same number of ranks."""
    return ("GPU" if "GPU" in finding.where else finding.where, finding.quantity)


def _change(a: ProbeFinding | None, b: ProbeFinding | None) -> Change:
    shown = a or b
    assert shown is not None
    change = b.value / a.value - 1.0 if a and b else None
    return Change(
        where=_key(shown)[0],
        quantity=shown.quantity,
        label=shown.label,
        unit=shown.unit,
        a=a.value if a else None,
        b=b.value if b else None,
        change=change,
        verdict=_compared(a, b, change),
    )


def _compared(a: ProbeFinding | None, b: ProbeFinding | None, change: float | None) -> str:
    if a is None or b is None or change is None:
        return "only in the second" if a is None else "only in the first"
    if abs(change) <= max(NOISE, (a.spread or 0.0) + (b.spread or 0.0)):
        return "same within noise"
    return "better" if (change > 0) != a.is_time else "worse"
