"""Assemble a machine's profile from NVML's inventory, the catalogue's rates, the host and measurements."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from hwprobe.catalogue import assumed_internode, gpu_from_catalogue, match_gpu
from hwprobe.expected import verdict
from hwprobe.findings import LABELS, findings
from hwprobe.inventory.health import sheet_mismatch, warnings
from hwprobe.inventory.host import read_host
from hwprobe.inventory.nvml import Inventory, NvmlGpu, read_inventory
from hwprobe.profile import AllReduce, Basis, GpuProfile, HardwareProfile, Matrix, Quantity, WorkingState

# Measured quantities that replace data-sheet ones in a GpuProfile.
REPLACING = ("hbm_gb_s", "bf16_tflops", "fp8_tflops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that was measured: per GPU by its place in the inventory, of the host, and between GPUs.

    `matrices` are over `places`; `remarks` say what could not be measured and why.
    """

    gpus: Mapping[int, Mapping[str, Quantity]] = field(default_factory=dict)
    host: Mapping[str, Quantity] = field(default_factory=dict)
    places: tuple[int, ...] = ()
    p2p_gb_s: Matrix | None = None
    p2p_latency_us: Matrix | None = None
    p2p_both_gb_s: Matrix | None = None
    all_to_all_gb_s: Quantity | None = None
    working: Mapping[int, Mapping[str, WorkingState]] = field(default_factory=dict)
    all_reduce: tuple[AllReduce, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def probe_machine(nvml: Any | None = None) -> HardwareProfile:
    """Return the inventory of this machine. Without a GPU `gpus` is empty and a warning says why."""
    return assemble(visible_only(read_inventory(nvml)), Measured())


def assemble(inventory: Inventory, measured: Measured) -> HardwareProfile:
    """Return the profile: measured figures first, then NVML's, then the data sheet's."""
    profiles = [
        _known_gpu(gpu, measured.gpus.get(place, {}), measured.working.get(place, {}))
        for place, gpu in enumerate(inventory.gpus)
    ]
    places = [place for place, gpu in enumerate(profiles) if gpu is not None]
    matrices = (measured.p2p_gb_s, measured.p2p_latency_us, measured.p2p_both_gb_s)
    gbs, latency, both = (_spread_out(matrix, measured.places, places) for matrix in matrices)
    gpus = tuple(_with_link(gpu, gbs, row) for row, gpu in enumerate(gpu for gpu in profiles if gpu is not None))
    host = read_host()
    profile = HardwareProfile(
        name=_machine_name(gpus),
        gpus=gpus,
        internode_gb_s=assumed_internode() if gpus else None,
        host=replace(host, measured=dict(measured.host)),
        software=inventory.software | dict(measured.software),
        topology=_words(inventory.topology, places),
        p2p=_words(inventory.p2p, places),
        p2p_gb_s=gbs,
        p2p_latency_us=latency,
        p2p_both_gb_s=both,
        all_to_all_gb_s=measured.all_to_all_gb_s,
        all_reduce=measured.all_reduce,
        warnings=(
            *warnings(inventory),
            *_mismatches(inventory.gpus),
            *_unknown(inventory.gpus, profiles),
            *measured.remarks,
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(profile, warnings=(*profile.warnings, *_judged(profile)))


def visible_only(inventory: Inventory, environment: Mapping[str, str] = os.environ) -> Inventory:
    """Return the inventory without GPUs that CUDA_VISIBLE_DEVICES hides (numbers are NVML's, or uuids)."""
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None or not inventory.gpus:
        return inventory
    visible = [part.strip() for part in text.split(",") if part.strip()]
    places = [
        place
        for place, gpu in enumerate(inventory.gpus)
        if any(part == str(gpu.index) or (gpu.uuid or "").startswith(part) for part in visible)
    ]
    return replace(
        inventory,
        gpus=tuple(inventory.gpus[place] for place in places),
        absent=inventory.absent if places else f"CUDA_VISIBLE_DEVICES='{text}' hides every GPU",
        topology=_words(inventory.topology, places),
        p2p=_words(inventory.p2p, places),
    )


def _machine_name(gpus: Sequence[GpuProfile]) -> str:
    return f"{len(gpus)}x {gpus[0].name}" if gpus else "no GPU"


def _unknown(gpus: Sequence[NvmlGpu], profiles: Sequence[GpuProfile | None]) -> list[str]:
    return [
        f"GPU {gpu.index} ({gpu.name}, {gpu.memory_mib:.0f} MiB) is not in the catalogue: its bandwidth and "
        "rates are unknown until it is measured, so it is left out; write them into hardware.json to plan with it"
        for gpu, profile in zip(gpus, profiles, strict=True)
        if profile is None
    ]


def _mismatches(gpus: Sequence[NvmlGpu]) -> list[str]:
    sheets = [(gpu, match_gpu(gpu.name, gpu.memory_mib)) for gpu in gpus]
    remarks = [sheet_mismatch(gpu, gpu_from_catalogue(key).hbm_gb_s.value) for gpu, key in sheets if key]
    return [sentence for sentence in remarks if sentence]


def _judged(profile: HardwareProfile) -> list[str]:
    """Return what is wrong by the measurements, in words."""
    remarks = []
    for finding in findings(profile):
        bad = verdict(finding.quantity, finding.fraction)
        if finding.fraction is not None and bad not in ("", "normal"):
            of = f"{finding.value:,.1f} of {finding.sheet:,.0f} {finding.unit}, {finding.fraction:.0%}"
            remarks.append(f"{LABELS[finding.quantity]} {of}: {bad}")
        remarks.extend(
            f"GPU {place}: {finding.label} is {gap:.0%} below its siblings" for place, gap in finding.lagging.items()
        )
    return remarks


def _known_gpu(
    gpu: NvmlGpu, measured: Mapping[str, Quantity], working: Mapping[str, WorkingState]
) -> GpuProfile | None:
    """Return the best source of every figure, or None for an unknown card."""
    key = match_gpu(gpu.name, gpu.memory_mib)
    sheet = gpu_from_catalogue(key) if key else None
    rates = {name: _best(measured.get(name), getattr(sheet, name, None)) for name in REPLACING}
    hbm, bf16 = rates["hbm_gb_s"], rates["bf16_tflops"]
    if hbm is None or bf16 is None:
        return None
    sms = Quantity(value=gpu.sm_count, basis=Basis.NVML) if gpu.sm_count else getattr(sheet, "sm_count", None)
    return GpuProfile(
        name=gpu.name,
        uuid=gpu.uuid,
        memory_mib=Quantity(value=gpu.memory_mib, basis=Basis.NVML),
        sm_count=sms,
        hbm_gb_s=hbm,
        bf16_tflops=bf16,
        fp8_tflops=rates["fp8_tflops"],
        nvlink_gb_s=getattr(sheet, "nvlink_gb_s", None),
        compute_capability=gpu.compute_capability or getattr(sheet, "compute_capability", None),
        pcie=gpu.pcie or getattr(sheet, "pcie", None),
        measured={name: _with_sheet(name, value, sheet, gpu) for name, value in measured.items()},
        state=gpu.state,
        working=dict(working),
    )


def _best(measured: Quantity | None, sheet: Quantity | None) -> Quantity | None:
    if measured is None:
        return sheet
    return replace(measured, sheet=sheet.value if sheet else None)


def _with_sheet(name: str, quantity: Quantity, sheet: GpuProfile | None, gpu: NvmlGpu) -> Quantity:
    """Set the data-sheet figure next to a measurement that has one."""
    if sheet is None:
        return quantity
    if name.startswith(("hbm_", "stream_gb")):
        return replace(quantity, sheet=sheet.hbm_gb_s.value)
    name = name.replace("_sustained", "").replace("_block", "")
    return _best(quantity, getattr(sheet, name, None)) or quantity


def _with_link(gpu: GpuProfile, p2p_gb_s: Matrix | None, row: int) -> GpuProfile:
    """Replace the link rate of a GPU with NVLink by what its slowest pair measured."""
    linked = gpu.nvlink_gb_s is not None or (gpu.state is not None and bool(gpu.state.nvlinks_active))
    if p2p_gb_s is None or not linked:
        return gpu
    rates = [rate for rate in (*p2p_gb_s[row], *(other[row] for other in p2p_gb_s)) if rate]
    if not rates:
        return gpu
    slowest = Quantity(value=min(rates), basis=Basis.MEASURED, source="copies to and from every peer, the slowest")
    return replace(gpu, nvlink_gb_s=_best(slowest, gpu.nvlink_gb_s))


def _words(matrix: tuple[tuple[str, ...], ...] | None, places: Sequence[int]) -> tuple[tuple[str, ...], ...] | None:
    if matrix is None or len(places) < 2:
        return None
    return tuple(tuple(matrix[row][column] for column in places) for row in places)


def _spread_out(matrix: Matrix | None, places: Sequence[int], known_places: Sequence[int]) -> Matrix | None:
    """Return a matrix over `places` as one over `known_places`, empty where a GPU was not measured."""
    if matrix is None:
        return None
    where = {place: position for position, place in enumerate(places)}

    def cell(row: int, column: int) -> float | None:
        return matrix[where[row]][where[column]] if row in where and column in where else None

    return tuple(tuple(cell(row, column) for column in known_places) for row in known_places)
