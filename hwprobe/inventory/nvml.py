"""The GPUs as NVML reports them. Every call may be refused; a missing value is reported, never guessed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil

from hwprobe.inventory.nvml_links import link_errors, nvlinks, p2p_matrix, read_fabric, topology_matrix
from hwprobe.profile import GpuState, Holder

T = TypeVar("T")

# CUDA cores per SM since Ampere GA10x/Hopper/Blackwell; GA100 (8.0) has 64.
_CORES_PER_SM = {8: {0: 64}}

# Reasons that hold the clocks below what the work would get; idle and user settings are not among them.
THROTTLES = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature (driver)",
    "nvmlClocksEventReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
    "nvmlClocksEventReasonApplicationsClocksSetting": "application clocks set",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpu:
    """One GPU as NVML sees it; None where NVML refused. Memory in MiB."""

    index: int
    name: str
    uuid: str | None
    memory_mib: float
    sm_count: int | None
    compute_capability: str | None
    state: GpuState

    @property
    def pcie(self) -> str | None:
        state = self.state
        if not state.pcie_max_generation or not state.pcie_max_width:
            return None
        return f"Gen{state.pcie_max_generation} x{state.pcie_max_width}"

    @property
    def hbm_gb_s(self) -> float | None:
        """Return the bus's theoretical rate: width * clock * 2 (double data rate) / 8 bits, decimal GB/s."""
        bits, clock = self.state.memory_bus_bits, self.state.memory_max_clock_mhz
        return bits * clock * 2 / 8 / 1e3 if bits and clock else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What NVML reports: the GPUs, or why it lists none, the driver's versions, the links.

    `lost` names GPUs the driver counts but cannot reach; the matrices are over `gpus`.
    """

    gpus: tuple[NvmlGpu, ...] = ()
    absent: str | None = None
    software: dict[str, str]
    lost: tuple[str, ...] = ()
    topology: tuple[tuple[str, ...], ...] | None = None
    p2p: tuple[tuple[str, ...], ...] | None = None


class Refusals:
    """Asks NVML and keeps what it refused, once each: NotSupported, NoPermission, a lost GPU."""

    def __init__(self, nvml: Any) -> None:
        self._errors = nvml.NVMLError
        self.missing: list[str] = []

    def ask(self, query: str, call: Callable[[], T]) -> T | None:
        """Return the call's answer, or None when the driver refuses or this pynvml has no such call."""
        try:
            return call()
        except (self._errors, AttributeError) as error:
            message = f"{query}: {error}"
            if message not in self.missing:
                self.missing.append(message)
            return None


def read_inventory(nvml: Any | None = None) -> Inventory:
    """Return the inventory; never raises for a machine without GPU, driver or permission.

    `nvml` is the pynvml module or a stand-in with its functions.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Inventory(absent="the module pynvml is not installed (pip install nvidia-ml-py)", software={})
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Inventory(absent=f"no NVIDIA driver answers ({error})", software={})
    try:
        return _read_all(nvml)
    except nvml.NVMLError as error:
        return Inventory(absent=f"the NVIDIA driver does not list its GPUs ({error})", software=_software(nvml))
    finally:
        nvml.nvmlShutdown()


def _read_all(nvml: Any) -> Inventory:
    readable: list[tuple[Any, NvmlGpu]] = []
    lost: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            lost.append(f"GPU {index}: {error}")
            continue
        readable.append((handle, _read_gpu(nvml, index, handle, memory)))
    handles = [handle for handle, _ in readable]
    return Inventory(
        gpus=tuple(gpu for _, gpu in readable),
        absent=None if readable else "the NVIDIA driver reports no usable GPU",
        software=_software(nvml),
        lost=tuple(lost),
        topology=topology_matrix(nvml, handles),
        p2p=p2p_matrix(nvml, handles),
    )


def _read_gpu(nvml: Any, index: int, handle: Any, memory: Any) -> NvmlGpu:
    refusals = Refusals(nvml)
    ask = refusals.ask
    capability = ask("compute capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    cores = ask("cores", lambda: nvml.nvmlDeviceGetNumGpuCores(handle))
    name = _text(ask("name", lambda: nvml.nvmlDeviceGetName(handle))) or "unknown GPU"
    uuid = _text(ask("uuid", lambda: nvml.nvmlDeviceGetUUID(handle)))
    state = _read_links(nvml, handle, ask, _read_health(nvml, handle, ask, _read_clocks(nvml, handle, ask)))
    return NvmlGpu(
        index=index,
        name=name,
        uuid=uuid,
        memory_mib=memory.total / 2**20,
        sm_count=_sm_count(cores, capability),
        compute_capability=".".join(map(str, capability)) if capability else None,
        state=replace(
            state,
            memory_used_mib=memory.used / 2**20,
            memory_reserved_mib=memory.reserved / 2**20,
            holders=_holders(nvml, handle, ask),
            missing=tuple(refusals.missing),
        ),
    )


Ask = Callable[[str, Callable[[], Any]], Any]


def _read_clocks(nvml: Any, handle: Any, ask: Ask) -> GpuState:
    load = ask("utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    limit = ask("power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    default = ask("default power limit", lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
    return GpuState(
        memory_bus_bits=ask("memory bus width", lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle)),
        memory_clock_mhz=ask("memory clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        memory_max_clock_mhz=ask(
            "memory max clock", lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
        ),
        sm_clock_mhz=ask("SM clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        sm_max_clock_mhz=ask("SM max clock", lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        utilization_percent=None if load is None else load.gpu,
        power_limit_w=None if limit is None else limit / 1e3,
        power_default_w=None if default is None else default / 1e3,
        throttle_reasons=throttles(nvml, ask("throttle reasons", lambda: _reasons(nvml, handle))),
    )


def _read_health(nvml: Any, handle: Any, ask: Ask, state: GpuState) -> GpuState:
    ecc = ask("ECC mode", lambda: nvml.nvmlDeviceGetEccMode(handle))
    errors = ask(
        "ECC errors",
        lambda: nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_AGGREGATE_ECC
        ),
    )
    rows = ask("remapped rows", lambda: nvml.nvmlDeviceGetRemappedRows(handle))
    mig = ask("MIG mode", lambda: nvml.nvmlDeviceGetMigMode(handle))
    return replace(
        state,
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_uncorrected=errors,
        remapped_rows=None if rows is None else rows[0] + rows[1],
        remap_pending=None if rows is None else bool(rows[2]),
        remap_failed=None if rows is None else bool(rows[3]),
        mig=None if mig is None else bool(mig[0]),
    )


def _read_links(nvml: Any, handle: Any, ask: Ask, state: GpuState) -> GpuState:
    links = ask("NVLink", lambda: nvlinks(nvml, handle))
    present = 0 if links is None else links.present
    fabric = ask("fabric state", lambda: read_fabric(nvml, handle))
    return replace(
        state,
        pcie_generation=ask("PCIe generation", lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
        pcie_width=ask("PCIe width", lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)),
        pcie_max_generation=ask("PCIe max generation", lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)),
        pcie_max_width=ask("PCIe max width", lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)),
        nvlinks_active=None if links is None else links.active,
        nvlinks=None if links is None else links.present,
        nvlink_remote=None if links is None else links.remote,
        fabric=None if fabric is None else fabric.state,
        fabric_health=() if fabric is None else fabric.health,
        nvlink_errors=ask("NVLink errors", lambda: link_errors(nvml, handle, present)),
    )


def _reasons(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))


def throttles(nvml: Any, reasons: int | None) -> tuple[str, ...]:
    """Return the words for the bits of NVML's clocks-event reasons that slow work down."""
    return tuple(word for bit, word in THROTTLES.items() if reasons and reasons & getattr(nvml, bit, 0))


def _holders(nvml: Any, handle: Any, ask: Ask) -> tuple[Holder, ...]:
    processes = ask("compute processes", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ()
    return tuple(
        Holder(
            pid=process.pid,
            name=process_name(process.pid),
            used_mib=process.usedGpuMemory / 2**20 if process.usedGpuMemory else None,
        )
        for process in processes
    )


def process_name(pid: int) -> str | None:
    """Return the process's name, or None for one of another PID namespace (containers) or user."""
    try:
        return psutil.Process(pid).name()
    except (psutil.Error, ValueError):
        return None


def _sm_count(cores: int | None, capability: tuple[int, int] | None) -> int | None:
    if not cores or not capability:
        return None
    major, minor = capability
    return cores // _CORES_PER_SM.get(major, {}).get(minor, 128)


def _software(nvml: Any) -> dict[str, str]:
    ask = Refusals(nvml).ask
    versions: dict[str, str] = {}
    driver = _text(ask("driver", nvml.nvmlSystemGetDriverVersion))
    cuda = ask("CUDA", nvml.nvmlSystemGetCudaDriverVersion_v2)
    if driver:
        versions["driver"] = driver
    if cuda:
        versions["cuda"] = f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}"
    return versions


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
