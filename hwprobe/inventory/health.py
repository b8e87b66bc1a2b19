"""What an inventory says is wrong with a machine, and which GPUs must not be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hwprobe.inventory.nvml import Inventory, NvmlGpu
from hwprobe.profile import Holder

# An idle data-centre card holds a few MiB beyond what the driver reserves; one CUDA context about 500.
BUSY_MIB = 1024.0
BUSY_PERCENT = 5
# NVML's bus width times clock exceeds data sheets by 2-3 % (H200 4.92 of 4.80 TB/s); 10 % is another card.
SHEET_TOLERANCE = 0.10


def refusal(gpu: NvmlGpu) -> str | None:
    """Return why this GPU must not be measured (what holds it, and the remedy), or None when it may be."""
    state, name = gpu.state, f"GPU {gpu.index}"
    if state.mig:
        return f"{name}: MIG is on, so a slice would be measured for the card; nvidia-smi -i {gpu.index} -mig 0"
    busy = _busy(gpu)
    if busy:
        return f"{name} is busy: {busy}; not measured: stop it, or leave the GPU out with CUDA_VISIBLE_DEVICES"
    return None


def only_seems_busy(gpu: NvmlGpu) -> bool:
    """Whether NVML's utilisation is the only sign of work, as on an idle card whose driver scrubs its memory."""
    state = gpu.state
    return not state.holders and (state.memory_used_mib or 0.0) <= BUSY_MIB and _busy(gpu) is not None


def _busy(gpu: NvmlGpu) -> str | None:
    state = gpu.state
    used = state.memory_used_mib or 0.0
    if state.holders:
        return ", ".join(map(_named, state.holders)) + f" ({used / 1024:.1f} GiB in use)"
    if used > BUSY_MIB:
        return f"{used / 1024:.1f} GiB in use by a process the driver does not name here (another container or user?)"
    if (state.utilization_percent or 0) > BUSY_PERCENT:
        return f"{state.utilization_percent} % utilization by a process the driver does not name here"
    return None


def _named(holder: Holder) -> str:
    used = f" with {holder.used_mib / 1024:.1f} GiB" if holder.used_mib else ""
    return f"{holder.name or 'a process not visible here'} (pid {holder.pid}){used}"


def warnings(inventory: Inventory) -> tuple[str, ...]:
    """Return what a reader of this inventory must know, the same remark about several GPUs once."""
    gpus_of: dict[str, list[int]] = {}
    for gpu in inventory.gpus:
        for remark in _remarks(gpu):
            gpus_of.setdefault(remark, []).append(gpu.index)
    absent = [f"no GPU: {inventory.absent}"] if inventory.absent else []
    lost = [f"{gpu_name}; left out: it needs a reset or a reboot" for gpu_name in inventory.lost]
    return (
        *absent,
        *lost,
        *(f"{_gpus(where)}: {remark}" for remark, where in gpus_of.items()),
        *_uneven(inventory.gpus),
    )


def _gpus(indices: Sequence[int]) -> str:
    """Name GPUs shortly: "GPU 3", "GPUs 0-7", "GPUs 0, 2, 5"."""
    if len(indices) == 1:
        return f"GPU {indices[0]}"
    if list(indices) == list(range(indices[0], indices[-1] + 1)):
        return f"GPUs {indices[0]}-{indices[-1]}"
    return "GPUs " + ", ".join(map(str, indices))


def _remarks(gpu: NvmlGpu) -> Iterator[str]:
    state = gpu.state
    busy = _busy(gpu)
    if busy:
        yield f"busy: {busy}"
    if state.mig:
        yield "MIG is on: SGLang sees slices, not cards"
    yield from _memory_remarks(gpu)
    if state.throttle_reasons:
        yield f"clocks are held down: {', '.join(state.throttle_reasons)}"
    if state.power_limit_w and state.power_default_w and state.power_limit_w < 0.99 * state.power_default_w:
        yield f"power capped at {state.power_limit_w:.0f} W of {state.power_default_w:.0f} W"
    # The width holds at idle; the generation does not (idle links drop to Gen1), so it is not judged.
    if state.pcie_width and state.pcie_max_width and state.pcie_width < state.pcie_max_width:
        yield f"PCIe x{state.pcie_width} of x{state.pcie_max_width}: downtrained; reseat the card or its riser"
    if state.nvlinks and state.nvlinks_active is not None and state.nvlinks_active < state.nvlinks:
        yield f"{state.nvlinks_active} of {state.nvlinks} NVLinks up"
    if state.fabric and state.fabric not in ("completed", "not supported"):
        yield f"NVSwitch fabric {state.fabric}: where CUDA cannot start, systemctl start nvidia-fabricmanager"
    if state.fabric_health:
        yield f"NVSwitch fabric: {', '.join(state.fabric_health)}"
    if state.nvlink_errors:
        yield f"NVLink errors: {', '.join(f'{count:,} {name}' for name, count in state.nvlink_errors.items())}"
    yield from (f"NVML does not say: {field}" for field in state.missing)


def _memory_remarks(gpu: NvmlGpu) -> Iterator[str]:
    state = gpu.state
    if state.ecc is False:
        yield "ECC is off: bandwidth and capacity are not those of a server in production"
    if state.ecc_uncorrected:
        yield f"{state.ecc_uncorrected} uncorrected ECC errors over its life"
    if state.remap_pending:
        yield "memory rows wait to be remapped: reset the GPU"
    if state.remap_failed:
        yield "remapping of memory rows failed: the card needs service"


def _uneven(gpus: Sequence[NvmlGpu]) -> Iterator[str]:
    """Warn when the GPUs of one machine differ: a TP group runs at its slowest member."""
    for quantity, values in (
        ("are different cards", [(gpu.name, round(gpu.memory_mib)) for gpu in gpus]),
        ("have different power caps", [gpu.state.power_limit_w for gpu in gpus]),
        ("have different numbers of NVLinks", [gpu.state.nvlinks for gpu in gpus]),
    ):
        if len(set(values)) > 1:
            yield f"the GPUs {quantity}: {', '.join(str(value) for value in dict.fromkeys(values))}"


def sheet_mismatch(gpu: NvmlGpu, sheet_gb_s: float) -> str | None:
    """Return a sentence when bus width and clock contradict the data sheet the card was matched to."""
    bus = gpu.hbm_gb_s
    if bus is None or abs(bus / sheet_gb_s - 1.0) <= SHEET_TOLERANCE:
        return None
    return (
        f"GPU {gpu.index}: bus width and clock allow {bus / 1e3:.2f} TB/s but the data sheet of "
        f"'{gpu.name}' says {sheet_gb_s / 1e3:.2f}: is it the card its name says?"
    )
