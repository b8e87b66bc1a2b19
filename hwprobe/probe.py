"""Put together what this machine can tell: NVML's inventory, the catalogue's rates, the host."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hwprobe.catalogue import assumed_internode, gpu_from_catalogue, match_gpu
from hwprobe.host import read_host
from hwprobe.nvml import Inventory, NvmlGpu, read_inventory
from hwprobe.profile import Basis, GpuProfile, HardwareProfile, Quantity


def probe_machine(nvml: Any | None = None) -> HardwareProfile:
    """Return the profile of this machine. Without a GPU `gpus` is empty and a warning says why."""
    inventory = read_inventory(nvml)
    known = [_known_gpu(gpu) for gpu in inventory.gpus]
    gpus = tuple(gpu for gpu in known if gpu is not None)
    return HardwareProfile(
        name=_machine_name(gpus),
        gpus=gpus,
        internode_gb_s=assumed_internode() if gpus else None,
        host=read_host(),
        software=inventory.software,
        warnings=(*_warnings(inventory), *_unknown(inventory.gpus, known)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _machine_name(gpus: Sequence[GpuProfile]) -> str:
    return f"{len(gpus)}x {gpus[0].name}" if gpus else "no GPU"


def _warnings(inventory: Inventory) -> list[str]:
    said = [f"no GPU: {inventory.absent}"] if inventory.absent else []
    for gpu in inventory.gpus:
        if gpu.used_mib and gpu.used_mib > 0.02 * gpu.memory_mib:
            said.append(f"GPU {gpu.index}: {gpu.used_mib / 1024:.1f} GiB in use already")
        said.extend(f"GPU {gpu.index}: {what}" for what in gpu.missing)
    return said


def _unknown(seen: Sequence[NvmlGpu], known: Sequence[GpuProfile | None]) -> list[str]:
    return [
        f"GPU {gpu.index} ({gpu.name}, {gpu.memory_mib:.0f} MiB) is not in the catalogue: its bandwidth and "
        "rates are unknown, so it is left out; write them into hardware.json to plan with it"
        for gpu, found in zip(seen, known, strict=True)
        if found is None
    ]


def _known_gpu(gpu: NvmlGpu) -> GpuProfile | None:
    """Return NVML's facts completed by the catalogue's rates, or None for a card it does not know."""
    key = match_gpu(gpu.name, gpu.memory_mib)
    if key is None:
        return None
    sheet = gpu_from_catalogue(key)
    sms = Quantity(value=gpu.sm_count, basis=Basis.NVML) if gpu.sm_count else sheet.sm_count
    return GpuProfile(
        name=gpu.name,
        uuid=gpu.uuid,
        memory_mib=Quantity(value=gpu.memory_mib, basis=Basis.NVML),
        sm_count=sms,
        hbm_gb_s=sheet.hbm_gb_s,
        bf16_tflops=sheet.bf16_tflops,
        fp8_tflops=sheet.fp8_tflops,
        nvlink_gb_s=sheet.nvlink_gb_s,
        compute_capability=gpu.compute_capability or sheet.compute_capability,
        pcie=gpu.pcie or sheet.pcie,
    )
