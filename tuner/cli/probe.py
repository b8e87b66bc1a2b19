"""`sgtune probe`: what this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli import options
from tuner.cli.common import console, print_json

if TYPE_CHECKING:
    from hwprobe.profile import HardwareProfile


def probe(
    out: Annotated[Path | None, typer.Option("--out", help="Write the profile to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Say what this machine is: GPUs by NVML with their data-sheet rates, and the host. Works without a GPU."""
    from hwprobe.probe import probe_machine
    from hwprobe.profile import save_profile

    profile = probe_machine()
    if out is not None:
        save_profile(profile, out)
        console(stderr=True).print(f"wrote {out}")
    if json:
        print_json(profile)
    else:
        _show(profile)


def _show(profile: HardwareProfile) -> None:
    from rich.table import Table

    screen = console()
    if profile.host:
        host = profile.host
        shm = f", /dev/shm {host.shm_gib:.1f} GiB" if host.shm_gib is not None else ""
        screen.print(f"host: {host.cpu}, {host.logical_cpus} CPUs, {host.memory_gib:.1f} GiB memory{shm}, {host.os}")
    for name, version in profile.software.items():
        screen.print(f"{name}: {version}")
    if profile.gpus:
        table = Table(title="GPUs (each figure with its basis)")
        for heading in ("GPU", "memory GiB", "HBM GB/s", "BF16 TFLOP/s", "FP8 TFLOP/s", "NVLink GB/s", "PCIe"):
            table.add_column(heading)
        for gpu in profile.gpus:
            cells = [
                f"{q.value / scale:,.1f} ({q.basis})" if q else "-"
                for q, scale in (
                    (gpu.memory_mib, 1024), (gpu.hbm_gb_s, 1), (gpu.bf16_tflops, 1), (gpu.fp8_tflops, 1),
                    (gpu.nvlink_gb_s, 1),
                )
            ]  # fmt: skip
            table.add_row(gpu.name, *cells, gpu.pcie or "-")
        screen.print(table)
    for warning in profile.warnings:
        screen.print(f"note: {warning}")
    if not profile.gpus:
        screen.print("No GPU here: plan for a machine by name instead, as in sgtune plan --hardware h200x8 ...")
