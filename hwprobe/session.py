"""One probe from start to end: inventory, who may be measured, the measurements, the profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from hwprobe.choices import DeviceName
from hwprobe.inventory.health import only_seems_busy, refusal
from hwprobe.inventory.looks import open_eyes
from hwprobe.inventory.nvml import Inventory, NvmlGpu, read_inventory
from hwprobe.kernels.report import CPU_BUILD, MeasureRequest, Report, Step, TorchDevice
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
# How a profile's warning begins whose host figures are lower for it.
BUSY_HOST = "the host is busy"
LOOK_S = 0.5
# A driver that starts (no persistence mode) scrubs the memory for some seconds, and NVML calls that utilisation.
SETTLE_S = 5.0
NOT_READY = ("not started", "in progress")
NVLS_OFF = ("NCCL_NVLS_ENABLE", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A profile, and the requested measurements that were refused or failed.

    `said` is the whole stderr of every child that failed, by its title.
    """

    profile: HardwareProfile
    failures: tuple[str, ...] = ()
    said: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Who hears what: `progress` before and after every measurement, `keep` all that is known after each.

    A probe that is killed then loses only the rest.
    """

    progress: Progress | None = None
    keep: Callable[[Probed], None] | None = None


def run_probe(
    device: DeviceName,
    *,
    quick: bool,
    nvml: Any | None = None,
    runner: Runner = run_child,
    telling: Telling | None = None,
) -> Probed:
    """Take the inventory, measure what may be measured, and return the profile.

    `telling` hears of every measurement. `nvml` and `runner` stand in for pynvml and for child processes in tests.
    Failures are also among the profile's warnings: a later reader must see why a figure is missing.
    """
    inventory = settled(nvml)
    measured_device = _wanted(device, inventory)
    if measured_device is None:
        return Probed(profile=assemble(inventory, Measured(remarks=(NOTHING_TO_MEASURE,))))
    if not torch_installed():
        failures = () if device is DeviceName.AUTO else (TORCH_MISSING,)
        return Probed(profile=assemble(inventory, Measured(remarks=(TORCH_MISSING,))), failures=failures)
    if measured_device is DeviceName.CPU:
        busy = busy_host()
        session = _Session(inventory=inventory, remarks=(busy,) if busy else ())
        return session.run(host_tasks(quick=quick), runner, telling)
    with open_eyes(nvml) as look:
        watch = ThrottleWatch(runner, look)
        return _probe_gpus(inventory, quick, watch, telling or Telling())


def settled(nvml: Any | None = None, pause: Callable[[float], None] = time.sleep) -> Inventory:
    """Return the inventory of visible GPUs; one that only seems busy is read again for SETTLE_S."""
    inventory = visible_only(read_inventory(nvml))
    for _ in range(int(SETTLE_S / LOOK_S)):
        if not any(map(only_seems_busy, inventory.gpus)):
            break
        pause(LOOK_S)
        inventory = visible_only(read_inventory(nvml))
    return inventory


def _wanted(device: DeviceName, inventory: Inventory) -> DeviceName | None:
    if device is not DeviceName.AUTO:
        return device
    return DeviceName.CUDA if inventory.gpus or AMD_DRIVER.exists() else None


@dataclass(kw_only=True)
class _Session:
    """A probe that runs: its inventory, what became of every task so far, what was refused or remarked."""

    inventory: Inventory
    failures: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    watch: ThrottleWatch | None = None
    outcomes: list[TaskOutcome] = field(default_factory=list)

    def run(self, tasks: Sequence[MeasureTask], runner: Runner, telling: Telling | None) -> Probed:
        """Run the tasks one after the other and tell what is known after each."""
        telling = telling or Telling()

        def kept(task: MeasureTask) -> TaskOutcome:
            outcome = runner(task)
            self.outcomes.append(outcome)
            if telling.keep:
                telling.keep(self.probed())
            return outcome

        run_tasks(tasks, kept, telling.progress)
        return self.probed()

    def probed(self) -> Probed:
        """Return what is known now."""
        failed = {outcome.task.title: outcome for outcome in self.outcomes if outcome.failure}
        messages = tuple(f"{title}: {outcome.failure}" for title, outcome in failed.items())
        measured = merge(self.outcomes)
        measured = replace(measured, remarks=(*self.remarks, *self.failures, *messages, *measured.remarks))
        if self.watch is not None:
            places = range(len(self.inventory.gpus))
            noted = (*measured.remarks, *self.watch.remarks())
            working = {place: self.watch.working(place) for place in places}
            measured = replace(measured, remarks=noted, working=working)
        stderr_of = {title: outcome.stderr for title, outcome in failed.items() if outcome.stderr}
        return Probed(profile=assemble(self.inventory, measured), failures=(*self.failures, *messages), said=stderr_of)


def _probe_gpus(inventory: Inventory, quick: bool, watch: ThrottleWatch, telling: Telling) -> Probed:
    refused = tuple(filter(None, map(refusal, inventory.gpus)))
    free = [(place, gpu.uuid or str(gpu.index)) for place, gpu in enumerate(inventory.gpus) if refusal(gpu) is None]
    if refused and not free:
        return Probed(profile=assemble(inventory, Measured(remarks=refused)), failures=refused)
    session = _Session(inventory=inventory, failures=refused, watch=watch)
    session.run([_look_task(free, quick)], watch, telling)
    failed = session.outcomes[-1].failure or ""
    if failed and CPU_BUILD not in failed and len(free) > 1:  # one bad card spoils the look at all of them
        session.outcomes.clear()
        for each in free:
            session.run([_look_task([each], quick)], watch, telling)
        free = [each for each, outcome in zip(free, session.outcomes, strict=True) if not outcome.failure]
    reports = [outcome.report for outcome in session.outcomes if not outcome.failure and outcome.report]
    if not reports:
        failed = session.outcomes[-1].failure or failed
        fabric = {gpu.state.fabric for gpu in inventory.gpus if gpu.state.fabric in NOT_READY}
        why = f" (the NVSwitch fabric is {', '.join(map(str, fabric))}: nvidia-fabricmanager)" if fabric else ""
        messages = (*refused, f"nothing was measured on GPUs: {failed}{why}")
        stderr_of = session.probed().said
        return Probed(profile=assemble(inventory, Measured(remarks=messages)), failures=messages, said=stderr_of)
    if not inventory.gpus:
        session.inventory = _from_torch(inventory, reports[0].devices)
        free = [(place, str(gpu.index)) for place, gpu in enumerate(session.inventory.gpus)]
    session.run(gpu_tasks(free, quick=quick), partial(_again_without_nvls, watch, session), telling)
    return session.probed()


def _again_without_nvls(runner: Runner, session: _Session, task: MeasureTask) -> TaskOutcome:
    """Run a task; an all-reduce that failed runs once more without NVLink SHARP, which a fabric fault may fail."""
    outcome = runner(task)
    if task.request.step is not Step.ALL_REDUCE or not outcome.failure:
        return outcome
    session.outcomes.append(outcome)
    second = runner(replace(task, settings=(NVLS_OFF,)))
    if not second.failure:
        session.remarks += (f"all-reduce works with {NVLS_OFF[0]}={NVLS_OFF[1]} only: these figures are without NVLS",)
    return second


def _look_task(free: Sequence[tuple[int, str]], quick: bool) -> MeasureTask:
    return MeasureTask(
        request=MeasureRequest(step=Step.DEVICES, device=DeviceName.CUDA, quick=quick),
        gpus=tuple(place for place, _ in free),
        visible=tuple(name for _, name in free),
    )


def _from_torch(inventory: Inventory, devices: Sequence[TorchDevice]) -> Inventory:
    """Return an inventory of what torch sees, for GPUs NVML does not know (ROCm)."""
    remark = f"{visible_variable()} order; clocks, ECC, links and processes are NVML's to tell, and there is none"
    gpus = tuple(
        NvmlGpu(
            index=index,
            name=device.name,
            uuid=device.uuid,
            memory_mib=device.memory_mib,
            sm_count=device.sm_count,
            compute_capability=device.compute_capability,
            state=GpuState(missing=(remark,)),
        )
        for index, device in enumerate(devices)
    )
    return replace(inventory, gpus=gpus, absent=None if gpus else inventory.absent)


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
        missing |= dict.fromkeys(f"not measured: {quantity}" for quantity in report.missing)
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
        p2p_both_gb_s=pairs[1].p2p_both_gb_s,
        all_to_all_gb_s=pairs[1].all_to_all_gb_s,
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
        f"{BUSY_HOST}: {total:.0f} % of its CPU is in use, most by {name} (pid {pid}, {used:.0f} % of a core); "
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
