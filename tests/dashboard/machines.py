"""A made-up measured machine: eight healthy cards of the H200's data sheet, the last one slow in one thing."""

from __future__ import annotations

from dataclasses import replace

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.profile import AllReduce, Basis, GpuProfile, HardwareProfile, Quantity

RATES = {
    "hbm_gb_s": (4370.0, 4800.0), "hbm_copy_gb_s": (4310.0, 4800.0), "hbm_triad_gb_s": (4320.0, 4800.0),
    "bf16_tflops": (790.0, 989.0), "fp8_tflops": (1350.0, 1979.0),
    "stream_gb_s": (4150.0, None), "graph_node_us": (1.4, None), "eager_launch_us": (4.0, None),
}  # fmt: skip


def measured(value: float, sheet: float | None = None) -> Quantity:
    return Quantity(value=value, basis=Basis.MEASURED, source="made up for tests", spread=0.01, sheet=sheet)


def measured_machine(name: str = "made-up", slow: float = 0.78) -> HardwareProfile:
    """Return the machine; `slow` is what the last GPU reaches of its siblings' memory rates."""
    base = hardware_from_catalogue("h200x8")

    def gpu(index: int) -> GpuProfile:
        def factor(quantity: str) -> float:
            return slow if index == 7 and quantity.startswith("hbm") else 1.0

        found = {each: measured(value * factor(each), sheet) for each, (value, sheet) in RATES.items()}
        return replace(base.gpus[index], measured=found, nvlink_gb_s=measured(380.0, 450.0))

    rates = tuple(tuple(None if r == c else 380.0 - (60.0 if 7 in (r, c) else 0.0) for c in range(8)) for r in range(8))
    return replace(
        base,
        name=name,
        gpus=tuple(gpu(index) for index in range(8)),
        p2p_gb_s=rates,
        p2p_latency_us=tuple(tuple(None if value is None else 2.1 for value in row) for row in rates),
        all_reduce=(AllReduce(ranks=8, message_bytes=2**20, backend="nccl", time_us=measured(31.0)),),
        warnings=("GPU 7 is slower than its siblings",),
        software={"driver": "made up"},
    )
