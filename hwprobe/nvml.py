"""The GPUs as NVML reports them. Every call may be refused; what is missing is said, never guessed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# CUDA cores per SM since Ampere GA10x/Hopper/Blackwell; GA100 (8.0) has 64.
_CORES_PER_SM = {8: {0: 64}}


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpu:
    """One GPU as NVML sees it; None where NVML refused. Memory in MiB (used excludes reserved)."""

    index: int
    name: str
    uuid: str | None
    memory_mib: float
    used_mib: float | None
    sm_count: int | None
    compute_capability: str | None
    pcie: str | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What NVML could tell: the GPUs, or why there are none, and the driver's versions."""

    gpus: tuple[NvmlGpu, ...]
    absent: str | None
    software: dict[str, str]


def read_inventory(nvml: Any | None = None) -> Inventory:
    """Return the inventory; never raises for a machine without GPU, driver or permission.

    `nvml` is the pynvml module or a stand-in with its functions.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Inventory(gpus=(), absent="the module pynvml is not installed", software={})
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Inventory(gpus=(), absent=f"no NVIDIA driver answers ({error})", software={})
    try:
        count = nvml.nvmlDeviceGetCount()
        gpus = [gpu for gpu in (_read_gpu(nvml, index) for index in range(count)) if gpu is not None]
        absent = None if gpus else "the NVIDIA driver reports no usable GPU"
        return Inventory(gpus=tuple(gpus), absent=absent, software=_software(nvml))
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int) -> NvmlGpu | None:
    missing: list[str] = []

    def ask(what: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except nvml.NVMLError as error:
            missing.append(f"{what}: {error}")
            return None

    handle = ask("handle", lambda: nvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return None
    memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
    if memory is None:
        return None
    capability = ask("compute capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    cores = ask("cores", lambda: nvml.nvmlDeviceGetNumGpuCores(handle))
    generation = ask("PCIe generation", lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))
    width = ask("PCIe width", lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    return NvmlGpu(
        index=index,
        name=_text(ask("name", lambda: nvml.nvmlDeviceGetName(handle))) or "unknown GPU",
        uuid=_text(ask("uuid", lambda: nvml.nvmlDeviceGetUUID(handle))),
        memory_mib=memory.total / 2**20,
        used_mib=memory.used / 2**20,
        sm_count=_sm_count(cores, capability),
        compute_capability=".".join(map(str, capability)) if capability else None,
        pcie=f"Gen{generation} x{width}" if generation and width else None,
        missing=tuple(missing),
    )


def _sm_count(cores: int | None, capability: tuple[int, int] | None) -> int | None:
    if not cores or not capability:
        return None
    major, minor = capability
    return cores // _CORES_PER_SM.get(major, {}).get(minor, 128)


def _software(nvml: Any) -> dict[str, str]:
    versions: dict[str, str] = {}
    try:
        versions["driver"] = _text(nvml.nvmlSystemGetDriverVersion()) or ""
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
        versions["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    except nvml.NVMLError:
        pass
    return versions


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
