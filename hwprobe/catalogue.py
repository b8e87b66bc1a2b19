"""Machines by name, from data sheets: '<gpu>', '<gpu>x<count>', named servers, '<nodes>x<server>', '2x8xH100'."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hwprobe.errors import InputError, did_you_mean
from hwprobe.profile import Basis, GpuProfile, HardwareProfile, Quantity

# 400 Gb/s network adapter per GPU: what published two-node R1 set-ups use (16 x H100/H800/H20).
INTERNODE_GB_S = 50.0
LARGEST_NODE = 16
LARGEST_CLUSTER = 64
USUAL_NODE = 8

_NODES_OF_COUNTED = re.compile(r"(?P<nodes>\d+)x(?P<count>\d+)x(?P<gpu>.+)")
_NODES_OF_SERVER = re.compile(r"(?P<nodes>\d+)x(?P<server>.+)")
_COUNTED = re.compile(r"(?P<gpu>.+?)x(?P<count>\d+)")
_QUANTITIES = ("memory_mib", "hbm_gb_s", "bf16_tflops", "fp8_tflops", "nvlink_gb_s", "sm_count")
_OWN_FILE = (
    "for a machine that is not listed run `sgtune probe --out hardware.json` on it, or write that file: name, nodes, "
    "and in gpus for each GPU of a node name, memory_mib, hbm_gb_s, bf16_tflops, and where it has them fp8_tflops, "
    "nvlink_gb_s (one direction), sm_count, compute_capability; each figure as "
    '{"value": 96000, "basis": "catalogue"}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What a name says: `gpu` is a key of gpus.toml, `server` one of servers.toml; `said` how it was read."""

    gpu: str
    count: int
    nodes: int = 1
    server: str | None = None
    said: str | None = None


@cache
def _table(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("hwprobe").joinpath(name).read_text(encoding="utf-8"))


def gpu_keys() -> list[str]:
    """Return the catalogue's GPU keys, without those that only serve a named server."""
    return [key for key, entry in _table("gpus.toml").items() if not entry.get("server_only")]


def hardware_names() -> list[str]:
    """Return the names a user is most likely to want, for messages and completion."""
    counted = (f"{gpu}x{_table('gpus.toml')[gpu].get('node', USUAL_NODE)}" for gpu in gpu_keys())
    return [*_table("servers.toml"), *counted, "2xh100x8", "2xh20x8"]


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
    normalized = re.sub(r"\s*[x*]\s*(?=\d)|(?<=\d)\s*[x*]\s+", "x", name.strip().lower().replace("\u00d7", "x"))
    normalized = re.sub(r"[\s_]+", "-", re.sub(r"\b(nvidia|amd|instinct|dgx|hgx)[\s_-]+", "", normalized))
    normalized = re.sub(r":(?=\d+$)", "x", normalized)  # as SkyPilot counts: H200:8
    machine = _read(normalized, name)
    if not 1 <= machine.count <= LARGEST_NODE:
        raise InputError(f"hardware '{name}': {machine.count} GPUs in a node; 1 to {LARGEST_NODE} are possible")
    if not 1 <= machine.nodes <= LARGEST_CLUSTER:
        raise InputError(f"hardware '{name}': {machine.nodes} nodes; 1 to {LARGEST_CLUSTER} are possible")
    entry = _table("gpus.toml")[machine.gpu]
    server = _table("servers.toml").get(machine.server or "", {})
    plain = f"{machine.gpu}x{machine.count}" if machine.server is None or "nodes" in server else machine.server
    return HardwareProfile(
        name=plain if machine.nodes == 1 else f"{machine.nodes}x{plain}",
        gpus=(gpu_from_catalogue(machine.gpu),) * machine.count,
        nodes=machine.nodes,
        internode_gb_s=_internode(entry, machine.nodes),
        published_as=server.get("published_as") if machine.nodes == 1 else None,
        warnings=tuple(text for text in (server.get("warning"), entry.get("warning"), machine.said) if text),
    )


def _read(normalized: str, typed: str) -> _Named:
    """Read a name. Raises InputError naming the nearest known names and what a hardware.json needs."""
    counted = _NODES_OF_COUNTED.fullmatch(normalized)
    if counted and (gpu := _gpu_key(counted["gpu"])):
        return _Named(gpu=gpu, count=int(counted["count"]), nodes=int(counted["nodes"]))
    alone = _server(normalized, 1)
    if alone is not None:
        return alone
    cluster = _NODES_OF_SERVER.fullmatch(normalized)
    if cluster and (gpu := _gpu_key(cluster["server"])):
        return _of_gpus(gpu, int(cluster["nodes"]), typed)
    several = _server(cluster["server"], int(cluster["nodes"])) if cluster else None
    if several is None:
        near = did_you_mean(normalized, hardware_names())
        raise InputError(f"unknown hardware '{typed[:80]}': {near.rstrip('?')}; {_OWN_FILE}")
    return several


def _server(normalized: str, nodes: int) -> _Named | None:
    """Return `nodes` of a named server, of a counted GPU, or of a GPU's usual node."""
    entry = _table("servers.toml").get(normalized)
    if entry is not None:
        return _Named(gpu=entry["gpu"], count=entry["gpus"], nodes=nodes * entry.get("nodes", 1), server=normalized)
    gpu = _gpu_key(normalized)
    if gpu is not None:
        usual = _table("gpus.toml")[gpu].get("node", USUAL_NODE)
        return _Named(gpu=gpu, count=usual, nodes=nodes, said=f"one node of {normalized} is taken as {usual} GPUs")
    counted = _COUNTED.fullmatch(normalized)
    gpu = _gpu_key(counted["gpu"]) if counted else None
    if counted is None or gpu is None:
        return None
    count, usual = int(counted["count"]), _table("gpus.toml")[gpu].get("node", USUAL_NODE)
    if count > usual and count % usual == 0:
        part = "trays" if "node" in _table("gpus.toml")[gpu] else "nodes"
        assumption = f"{normalized} is taken as {count // usual} {part} of {usual} GPUs"
        return _Named(gpu=gpu, count=usual, nodes=nodes * count // usual, said=assumption)
    return _Named(gpu=gpu, count=count, nodes=nodes)


def _of_gpus(gpu: str, count: int, typed: str) -> _Named:
    """Return `count` GPUs ('8xH100', '16xH200') as whole nodes where they are more than one holds."""
    usual = _table("gpus.toml")[gpu].get("node", USUAL_NODE)
    if count > usual and count % usual == 0:
        assumption = f"'{typed}' is taken as {count} GPUs in {count // usual} nodes of {usual}"
        return _Named(gpu=gpu, count=usual, nodes=count // usual, said=assumption)
    assumption = f"'{typed}' is taken as {count} GPUs in one node; nodes of {usual} are '{count}x{gpu}x{usual}'"
    return _Named(gpu=gpu, count=count, said=assumption if count < usual else None)


def _gpu_key(text: str) -> str | None:
    """Return the catalogue key of a GPU's name or alias, or None."""
    plain = re.sub(r"-(sxm\d?|hbm\de?)(?=-|$)", "", text)
    for name in (text, plain):
        for key in gpu_keys():
            if name == key or name in _table("gpus.toml")[key].get("aliases", ()):
                return key
    return None


def _internode(entry: dict[str, Any], nodes: int) -> Quantity:
    """Return what connects nodes: NVLink within one rack of trays, a network adapter per GPU elsewhere."""
    if 1 < nodes <= entry.get("rack", 0):
        source = f"NVLink: {nodes} trays within one NVLink domain of {entry['rack']}"
        return Quantity(value=float(entry["nvlink_gb_s"]), basis=Basis.ASSUMED, source=source)
    return assumed_internode()


def assumed_internode() -> Quantity:
    """Return the network figure used when none was measured."""
    return Quantity(value=INTERNODE_GB_S, basis=Basis.ASSUMED, source="400 Gb/s adapter per GPU")


def gpus_per_node(gpu: str) -> int:
    """Return how many of a GPU usually stand in one node: 8, or a tray of 4. `gpu` is a key or an alias."""
    key = _gpu_key(gpu)
    return USUAL_NODE if key is None else int(_table("gpus.toml")[key].get("node", USUAL_NODE))


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
