"""Between the GPUs as NVML reports it: NVLinks, the NVSwitch fabric, topology and P2P matrices."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Nearest common ancestor of two GPUs, in the words of `nvidia-smi topo -m`.
_TOPOLOGY = {0: "internal", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_P2P = {
    0: "ok",
    1: "chipset not supported",
    2: "GPU not supported",
    3: "topology not supported",
    4: "disabled by regkey",
    5: "not supported",
}
_REMOTE = {0: "gpu", 1: "ibmnpu", 2: "switch"}
_FABRIC = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}

Words = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NvLinks:
    """How many links a GPU has, how many are up, and what the first of those leads to."""

    present: int
    active: int
    remote: str | None


def nvlinks(nvml: Any, handle: Any) -> NvLinks:
    """Count the links one by one: numbers beyond the last are refused. A card without NVLink has 0."""
    states: list[tuple[int, bool]] = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            states.append((link, bool(nvml.nvmlDeviceGetNvLinkState(handle, link))))
        except nvml.NVMLError:
            continue
    up = [link for link, active in states if active]
    remote = None
    if up:
        try:
            remote = _REMOTE.get(nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, up[0]))
        except nvml.NVMLError:
            remote = None
    return NvLinks(present=len(states), active=len(up), remote=remote)


# Two bits each of the fabric's health mask: 1 says that it is so (NVML_GPU_FABRIC_HEALTH_MASK_*), by shift.
_UNHEALTHY = {
    0: "degraded bandwidth",
    2: "routes being recovered",
    4: "routes unhealthy",
    6: "recovering from access timeouts",
}
_CONFIGURATION_SHIFT, _CONFIGURATION_MASK = 8, 0xF
_MISCONFIGURED = {
    2: "wrong system GUID",
    3: "wrong chassis serial number",
    4: "no partition",
    5: "too few NVLinks",
    6: "incompatible GPU firmware",
    7: "invalid location",
    8: "GPU in an invalid state",
}
# Error counters of one link, by NVML's field numbers: 161-163 on every generation, 206-219 on the newer ones. Left out:
# symbol errors (221), which forward error correction mends all the time; bit error rates (216-218, 220, 222), which are
# rates, not counts; 215, the sum of 213 and 214.
LINK_ERRORS = {
    161: "replays",
    162: "link recoveries",
    163: "CRC errors",
    206: "malformed packets",
    207: "buffer overruns",
    208: "receive errors",
    209: "remote receive errors",
    210: "general receive errors",
    211: "link integrity errors",
    212: "discarded packets",
    213: "recoveries",
    214: "failed recoveries",
    219: "effective errors",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The NVSwitch fabric as one GPU sees it: its state, and what its health mask says is wrong."""

    state: str
    health: tuple[str, ...] = ()


def read_fabric(nvml: Any, handle: Any) -> Fabric:
    """Return the NVSwitch fabric's state ("completed: <error>" where the fabric manager reports one) and health.

    CUDA refuses to start (error 802) on NVSwitch machines until it is completed; a single GPU passed through to a
    virtual machine may stay "in progress" for ever while CUDA works.
    """
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info) if isinstance(info, ctypes.Structure) else info)
    state = _FABRIC.get(info.state, f"state {info.state}")
    if info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED and info.status:
        state = f"{state}: error {info.status}"
    return Fabric(state=state, health=fabric_health(info.healthMask))


def fabric_health(mask: int) -> tuple[str, ...]:
    """Return the faults in a fabric's health mask, in words; empty for a healthy or an older one (0)."""
    faults = [words for shift, words in _UNHEALTHY.items() if mask >> shift & 0b11 == 1]
    configuration = mask >> _CONFIGURATION_SHIFT & _CONFIGURATION_MASK
    return (*faults, *filter(None, [_MISCONFIGURED.get(configuration)]))


def link_errors(nvml: Any, handle: Any, links: int) -> dict[str, int] | None:
    """Return the NVLink error counters above 0, summed over `links`; {} where all are 0, None where NVML has none."""
    fields = [(number, link) for link in range(links) for number in LINK_ERRORS]
    if not fields:
        return None
    readings = [value for value in nvml.nvmlDeviceGetFieldValues(handle, fields) if value.nvmlReturn == 0]
    counts: dict[str, int] = {}
    for value in readings:
        name = LINK_ERRORS[value.fieldId]
        counts[name] = counts.get(name, 0) + int(value.value.ullVal)
    return {name: count for name, count in counts.items() if count} if readings else None


def topology_matrix(nvml: Any, handles: Sequence[Any]) -> Words | None:
    """Return who sits how near to whom, or None for a single GPU."""
    return _matrix(nvml, handles, lambda a, b: _TOPOLOGY.get(nvml.nvmlDeviceGetTopologyCommonAncestor(a, b), "unknown"))


def p2p_matrix(nvml: Any, handles: Sequence[Any]) -> Words | None:
    """Return per pair "NVLink", "PCIe" or why there is no peer-to-peer access, or None for a single GPU."""

    def between(a: Any, b: Any) -> str:
        if nvml.nvmlDeviceGetP2PStatus(a, b, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK:
            return "NVLink"
        # Index 0 is NVML_P2P_CAPS_INDEX_READ, which pynvml spells as a tuple.
        status = nvml.nvmlDeviceGetP2PStatus(a, b, 0)
        return "PCIe" if status == nvml.NVML_P2P_STATUS_OK else _P2P.get(status, "unknown")

    return _matrix(nvml, handles, between)


def _matrix(nvml: Any, handles: Sequence[Any], between: Callable[[Any, Any], str]) -> Words | None:
    if len(handles) < 2:
        return None

    def cell(row: int, column: int) -> str:
        if row == column:
            return "self"
        try:
            return between(handles[row], handles[column])
        except nvml.NVMLError:
            return "unknown"

    places = range(len(handles))
    return tuple(tuple(cell(row, column) for column in places) for row in places)
