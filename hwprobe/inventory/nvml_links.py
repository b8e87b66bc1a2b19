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


def fabric_state(nvml: Any, handle: Any) -> str:
    """Return the NVSwitch fabric's state; "completed: <error>" where the fabric manager reports one.

    CUDA refuses to start (error 802) on NVSwitch machines until it is completed.
    """
    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info) if isinstance(info, ctypes.Structure) else info)
    state = _FABRIC.get(info.state, f"state {info.state}")
    return (
        f"{state}: error {info.status}" if info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED and info.status else state
    )


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
