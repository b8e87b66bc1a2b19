"""How a probed machine looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hwprobe.findings import LABELS, Change, ProbeFinding, findings
from hwprobe.measure import TaskOutcome
from hwprobe.profile import GpuProfile, HardwareProfile, Matrix


def summary(outcome: TaskOutcome) -> str:
    """Return the end of a progress line: the best-known figures of a measurement, or why it failed."""
    if outcome.report is None or outcome.failure:
        return f"failed after {outcome.seconds:.1f} s: {outcome.failure}"
    report = outcome.report
    figures = [
        f"{LABELS[name]} {quantity.value:,.4g} {_unit(name)}"
        for name, quantity in report.quantities.items()
        if name in LABELS
    ]
    if report.all_reduce:
        first, last = report.all_reduce[0], report.all_reduce[-1]
        figures = [f"{point.message_bytes:,} B in {point.time_us.value:,.1f} us" for point in (first, last)]
    if report.p2p_gb_s is not None:
        rates = [rate for row in report.p2p_gb_s for rate in row if rate]
        figures = [f"{min(rates):,.0f} to {max(rates):,.0f} GB/s"] if rates else ["no direct access"]
    return f"{', '.join(figures) or 'done'} ({outcome.seconds:.1f} s)"


def _unit(name: str) -> str:
    return {"s": "GB/s", "tflops": "TFLOP/s", "us": "us"}[name.rsplit("_", maxsplit=1)[-1]]


def show_profile(profile: HardwareProfile, screen: Console) -> None:
    """Print the host, the GPUs with the basis of each figure, the measurements and the warnings."""
    if profile.host:
        host = profile.host
        shm = f", /dev/shm {host.shm_gib:.1f} GiB" if host.shm_gib is not None else ""
        screen.print(
            f"host: {host.cpu}, {host.logical_cpus} CPUs, {host.memory_gib:.1f} GiB memory{shm}, {host.os}",
            markup=False,
        )
    if profile.software:
        screen.print(", ".join(f"{name} {version}" for name, version in profile.software.items()), markup=False)
    if profile.gpus:
        screen.print(_gpus(profile.gpus))
    measured = findings(profile)
    if measured:
        screen.print(_measured(measured))
    if profile.p2p_gb_s is not None:
        screen.print(_pairs("GPU to GPU, GB/s (row sends to column)", profile.p2p_gb_s))
    for warning in profile.warnings:
        screen.print(f"note: {warning}", markup=False)
    if not profile.gpus:
        screen.print("No GPU here: plan for a machine by name instead, as in sgtune plan --hardware h200x8 ...")


def _gpus(gpus: Sequence[GpuProfile]) -> Table:
    table = Table(title="GPUs (each figure with its basis)")
    for heading in ("GPU", "memory GiB", "HBM GB/s", "BF16 TFLOP/s", "FP8 TFLOP/s", "NVLink GB/s", "PCIe"):
        table.add_column(heading)
    for gpu in gpus:
        cells = [
            f"{q.value / scale:,.1f} ({q.basis})" if q else "-"
            for q, scale in (
                (gpu.memory_mib, 1024), (gpu.hbm_gb_s, 1), (gpu.bf16_tflops, 1), (gpu.fp8_tflops, 1),
                (gpu.nvlink_gb_s, 1),
            )
        ]  # fmt: skip
        table.add_row(escape(gpu.name), *cells, escape(gpu.pcie or "-"))
    return table


def _measured(rows: Sequence[ProbeFinding]) -> Table:
    """Return measured against data sheet; several GPUs as their median with the slowest beside it."""
    table = Table(title="measured against the data sheet (of several GPUs the median)")
    for heading in ("where", "quantity", "measured", "slowest", "data sheet", "fraction", "spread", "verdict"):
        right = heading in ("measured", "slowest", "data sheet", "fraction", "spread")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(
            row.where,
            row.label,
            f"{row.value:,.4g} {row.unit}",
            f"{row.worst:,.4g}" if row.worst != row.value else "",
            f"{row.sheet:,.4g}" if row.sheet else "-",
            f"{row.fraction:.0%}" if row.fraction else "-",
            f"{row.spread:.1%}" if row.spread is not None else "-",
            row.verdict,
        )
    return table


def _pairs(title: str, matrix: Matrix) -> Table:
    table = Table(title=title)
    for heading in ("", *map(str, range(len(matrix)))):
        table.add_column(heading, justify="right")
    for index, row in enumerate(matrix):
        table.add_row(str(index), *("-" if rate is None else f"{rate:,.0f}" for rate in row))
    return table


def show_comparison(a: str, b: str, changes: Sequence[Change], screen: Console) -> None:
    """Print two profiles' measurements side by side."""
    table = Table(title=escape(f"{a} against {b}"))
    for heading in ("where", "quantity", "first", "second", "change", "verdict"):
        table.add_column(heading, justify="right" if heading in ("first", "second", "change") else "left")
    for change in changes:
        table.add_row(
            change.where,
            change.label,
            f"{change.a:,.4g} {change.unit}" if change.a is not None else "-",
            f"{change.b:,.4g} {change.unit}" if change.b is not None else "-",
            f"{change.change:+.1%}" if change.change is not None else "-",
            change.verdict,
        )
    screen.print(table)
