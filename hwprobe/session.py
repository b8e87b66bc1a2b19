"""One probe from start to end: inventory, who may be measured, the measurements, the profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from hwprobe.choices import DeviceName
from hwprobe.inventory.health import refusal
from hwprobe.inventory.nvml import Inventory, NvmlGpu, read_inventory, read_throttles
from hwprobe.kernels.report import MeasureRequest, Report, Step, TorchDevice
from hwprobe.measure import (
    TORCH_MISSING,
    MeasureTask,
    Progress,
    Runner,
    TaskOutcome,
    gpu_tasks,
    host_tasks,
    run_child,
    run_tasks,
    torch_installed,
    visible_variable,
)
from hwprobe.probe import Measured, assemble, visible_only
from hwprobe.profile import AllReduce, GpuState, HardwareProfile, Quantity
from hwprobe.watch import ThrottleWatch

# The device node of AMD's compute driver: torch finds such GPUs, NVML does not.
AMD_DRIVER = Path("/dev/kfd")
NOTHING_TO_MEASURE = "nothing was measured: no GPU; --device cpu measures this host"
# Other work on this share of the host's CPU lowers what is measured.
BUSY_HOST_PERCENT = 10.0
LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A profile, and what was asked for but could not be measured (refused or failed)."""

    profile: HardwareProfile
    failures: tuple[str, ...] = ()


def run_probe(
    device: DeviceName,
    *,
    quick: bool,
    nvml: Any | None = None,
    runner: Runner = run_child,
    progress: Progress | None = None,
) -> Probed:
    """Take the inventory, measure what may be measured, and return the profile.

    `nvml` and `runner` stand in for pynvml and for child processes in tests. Failures are also among
    the profile's warnings: whoever reads the file later must know why a figure is not measured.
    """
    inventory = visible_only(read_inventory(nvml))
    wanted = _wanted(device, inventory)
    if wanted is None:
        return Probed(profile=assemble(inventory, Measured(remarks=(NOTHING_TO_MEASURE,))))
    if not torch_installed():
        failures = () if device is DeviceName.AUTO else (TORCH_MISSING,)
        return Probed(profile=assemble(inventory, Measured(remarks=(TORCH_MISSING,))), failures=failures)
    if wanted is DeviceName.CPU:
        busy = busy_host()
        outcomes = run_tasks(host_tasks(quick=quick), runner, progress)
        return _probed(inventory, outcomes, remarks=(busy,) if busy else ())
    watch = ThrottleWatch(runner, partial(read_throttles, nvml=nvml))
    probed = _probe_gpus(inventory, quick, watch, progress)
    noted = (*probed.profile.warnings, *watch.remarks())
    return replace(probed, profile=replace(probed.profile, warnings=noted))


def _wanted(device: DeviceName, inventory: Inventory) -> DeviceName | None:
    if device is not DeviceName.AUTO:
        return device
    return DeviceName.CUDA if inventory.gpus or AMD_DRIVER.exists() else None


def _probe_gpus(inventory: Inventory, quick: bool, runner: Runner, progress: Progress | None) -> Probed:
    refused = tuple(filter(None, map(refusal, inventory.gpus)))
    free = [(place, gpu) for place, gpu in enumerate(inventory.gpus) if refusal(gpu) is None]
    if refused and not free:
        return Probed(profile=assemble(inventory, Measured(remarks=refused)), failures=refused)
    names = tuple(gpu.uuid or str(gpu.index) for _, gpu in free)
    look = MeasureTask(
        request=MeasureRequest(step=Step.DEVICES, device=DeviceName.CUDA, quick=quick),
        gpus=tuple(place for place, _ in free),
        visible=names,
    )
    (seen,) = run_tasks([look], runner, progress)
    if seen.report is None:
        said = (*refused, f"nothing was measured on GPUs: {seen.failure}")
        return Probed(profile=assemble(inventory, Measured(remarks=said)), failures=said)
    if not inventory.gpus:
        inventory = _from_torch(inventory, seen.report.devices)
        free = list(enumerate(inventory.gpus))
        names = tuple(str(gpu.index) for gpu in inventory.gpus)
    tasks = gpu_tasks([(place, name) for (place, _), name in zip(free, names, strict=True)], quick=quick)
    return _probed(inventory, (seen, *run_tasks(tasks, runner, progress)), failures=refused)


def _from_torch(inventory: Inventory, devices: Sequence[TorchDevice]) -> Inventory:
    """Return an inventory of what torch sees, for GPUs NVML does not know (ROCm)."""
    said = f"{visible_variable()} order; clocks, ECC, links and processes are NVML's to tell, and there is none"
    gpus = tuple(
        NvmlGpu(
            index=index,
            name=device.name,
            uuid=device.uuid,
            memory_mib=device.memory_mib,
            sm_count=device.sm_count,
            compute_capability=device.compute_capability,
            state=GpuState(missing=(said,)),
        )
        for index, device in enumerate(devices)
    )
    return replace(inventory, gpus=gpus, absent=None if gpus else inventory.absent)


def _probed(
    inventory: Inventory,
    outcomes: Sequence[TaskOutcome],
    *,
    failures: tuple[str, ...] = (),
    remarks: tuple[str, ...] = (),
) -> Probed:
    failed = tuple(f"{outcome.task.title}: {outcome.failure}" for outcome in outcomes if outcome.failure)
    measured = merge(outcomes)
    measured = replace(measured, remarks=(*remarks, *failures, *failed, *measured.remarks))
    return Probed(profile=assemble(inventory, measured), failures=(*failures, *failed))


def merge(outcomes: Sequence[TaskOutcome]) -> Measured:
    """Return the reports of all children as one value."""
    gpus: dict[int, dict[str, Quantity]] = {}
    host: dict[str, Quantity] = {}
    software: dict[str, str] = {}
    missing: dict[str, None] = {}
    pairs: tuple[tuple[int, ...], Report] = ((), Report())
    collectives: list[AllReduce] = []
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            continue
        software |= report.software
        missing |= dict.fromkeys(f"not measured: {what}" for what in report.missing)
        collectives.extend(report.all_reduce)
        if report.p2p_gb_s is not None:
            pairs = (outcome.task.gpus, report)
        if len(outcome.task.gpus) == 1:
            gpus.setdefault(outcome.task.gpus[0], {}).update(report.quantities)
        elif not outcome.task.gpus:
            host |= report.quantities
    return Measured(
        gpus=gpus,
        host=host,
        places=pairs[0],
        p2p_gb_s=pairs[1].p2p_gb_s,
        p2p_latency_us=pairs[1].p2p_latency_us,
        all_reduce=tuple(collectives),
        software=software,
        remarks=tuple(missing),
    )


def busy_host() -> str | None:
    """Return who keeps the host's CPU busy, or None when it is as good as idle. Takes half a second."""
    for process in psutil.process_iter():
        _percent(process)  # psutil measures between two calls
    total = psutil.cpu_percent(interval=LOOK_S)
    if total <= BUSY_HOST_PERCENT:
        return None
    used, name, pid = max((_percent(process), _name(process), process.pid) for process in psutil.process_iter())
    return (
        f"the host is busy: {total:.0f} % of its CPU is in use, most by {name} (pid {pid}, {used:.0f} % of a core); "
        "what is measured now is less than it can do"
    )


def _percent(process: psutil.Process) -> float:
    try:
        return float(process.cpu_percent())
    except psutil.Error:
        return 0.0


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "?"
