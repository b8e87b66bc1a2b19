"""Machines by name: '<gpu>x<count>', named servers, and '<nodes>x<server>' clusters, from data sheets."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from hwprobe.errors import InputError, did_you_mean
from hwprobe.profile import Basis, GpuProfile, HardwareProfile, Quantity

# 400 Gb/s network adapter per GPU: what published two-node R1 set-ups use (16 x H100/H800/H20).
INTERNODE_GB_S = 50.0
LARGEST_NODE = 16
LARGEST_CLUSTER = 64

_CLUSTER = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<server>.+)")
_COUNTED = re.compile(r"(?P<gpu>.+?)x(?P<count>\d+)")
_QUANTITIES = ("memory_mib", "hbm_gb_s", "bf16_tflops", "fp8_tflops", "nvlink_gb_s", "sm_count")


@cache
def _table(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("hwprobe").joinpath(name).read_text(encoding="utf-8"))


def gpu_keys() -> list[str]:
    """Return the catalogue's GPU keys, without those that only serve a named server."""
    reserved = {server["gpu"] for server in _table("servers.toml").values()}
    return [key for key in _table("gpus.toml") if key not in reserved]


def hardware_names() -> list[str]:
    """Return the names a user is most likely to want, for messages and completion."""
    return [*_table("servers.toml"), *(f"{gpu}x8" for gpu in gpu_keys()), "2xh100x8", "2xh20x8"]


def gpu_from_catalogue(key: str) -> GpuProfile:
    """Return a catalogue GPU; fields its sources do not confirm carry the basis `assumed`."""
    entry = _table("gpus.toml")[key]
    assumed = set(entry.get("assumed", ()))

    def quantity(field: str) -> Quantity | None:
        if field not in entry:
            return None
        basis = Basis.ASSUMED if field in assumed else Basis.CATALOGUE
        return Quantity(value=float(entry[field]), basis=basis, source=entry["source"])

    values = {field: quantity(field) for field in _QUANTITIES}
    return GpuProfile(
        name=entry["name"],
        compute_capability=entry.get("compute_capability"),
        pcie=entry.get("pcie"),
        **values,  # type: ignore[arg-type]  # required ones are in every entry, checked by a test
    )


def hardware_from_catalogue(name: str) -> HardwareProfile:
    """Return the machine called `name`. Raises InputError naming the nearest known names."""
    wanted = name.strip().lower()
    nodes, server = 1, wanted
    cluster = _CLUSTER.fullmatch(wanted)
    if cluster and cluster["nodes"]:
        nodes, server = int(cluster["nodes"]), cluster["server"]
    entry = _table("servers.toml").get(server)
    if entry is not None:
        gpu, count = entry["gpu"], entry["gpus"]
    else:
        counted = _COUNTED.fullmatch(server)
        if not counted or counted["gpu"] not in gpu_keys():
            raise InputError(f"unknown hardware '{name}': {did_you_mean(wanted, hardware_names())}")
        gpu, count = counted["gpu"], int(counted["count"])
    if not 1 <= count <= LARGEST_NODE:
        raise InputError(f"hardware '{name}': {count} GPUs in a node; 1 to {LARGEST_NODE} are possible")
    if not 1 <= nodes <= LARGEST_CLUSTER:
        raise InputError(f"hardware '{name}': {nodes} nodes; 1 to {LARGEST_CLUSTER} are possible")
    published = entry.get("published_as") if entry else None
    return HardwareProfile(
        name=wanted,
        gpus=(gpu_from_catalogue(gpu),) * count,
        nodes=nodes,
        internode_gb_s=assumed_internode(),
        published_as=published if nodes == 1 else None,
        warnings=(entry["warning"],) if entry and "warning" in entry else (),
    )


def assumed_internode() -> Quantity:
    """Return the network figure used when none was measured."""
    return Quantity(value=INTERNODE_GB_S, basis=Basis.ASSUMED, source="400 Gb/s adapter per GPU")


def match_gpu(name: str, memory_mib: float) -> str | None:
    """Return the catalogue key of a card NVML calls `name` with `memory_mib`, or None.

    Name alone is not enough (H20 and H20-3e share one), memory alone is not (H200 and H20-3e do).
    """
    model = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    by_length = sorted(gpu_keys(), key=len, reverse=True)
    for key in by_length:
        entry = _table("gpus.toml")[key]
        if abs(entry["memory_mib"] - memory_mib) > 0.02 * memory_mib:
            continue
        if key.split("-", maxsplit=1)[0] in model:
            return key
    return None
