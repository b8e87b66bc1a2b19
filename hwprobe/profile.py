"""HardwareProfile: what is known of a machine, each number with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json, read_bytes, write_atomic

SCHEMA_VERSION = 1

Positive = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]


class Basis(StrEnum):
    """Where a number came from, best first."""

    MEASURED = "measured"
    NVML = "nvml"
    CATALOGUE = "catalogue"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number, its basis and source; `spread` is the relative spread of repeated measurements."""

    value: Positive
    basis: Basis
    source: str = ""
    spread: Annotated[float, Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """One GPU. Bandwidths are decimal GB/s; NVLink is per direction; rates are dense TFLOP/s."""

    name: Text
    memory_mib: Quantity
    hbm_gb_s: Quantity
    bf16_tflops: Quantity
    fp8_tflops: Quantity | None = None
    nvlink_gb_s: Quantity | None = None
    sm_count: Quantity | None = None
    uuid: str | None = None
    compute_capability: str | None = None
    pcie: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """The computer around the GPUs."""

    cpu: str
    logical_cpus: int
    memory_gib: float
    shm_gib: float | None = None
    os: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """A machine of `nodes` equal nodes; `gpus` are those of one node.

    `topology` and `p2p` are matrices over `gpus` as NVML words them; `internode_gb_s` is the
    network's GB/s per GPU and direction; `published_as` is the name public measurements use.
    """

    name: Text
    gpus: tuple[GpuProfile, ...]
    nodes: PositiveInt = 1
    internode_gb_s: Quantity | None = None
    host: HostProfile | None = None
    software: dict[str, str] = field(default_factory=dict)
    topology: tuple[tuple[str, ...], ...] | None = None
    p2p: tuple[tuple[str, ...], ...] | None = None
    warnings: tuple[str, ...] = ()
    published_as: str | None = None
    created: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def gpus_per_node(self) -> int:
        return len(self.gpus)

    @property
    def gpu_count(self) -> int:
        return len(self.gpus) * self.nodes

    def smallest(self, quantity: str) -> Quantity | None:
        """Return the worst value of a quantity over the GPUs: a TP group runs at its slowest member."""
        found: list[Quantity] = [q for q in (getattr(gpu, quantity) for gpu in self.gpus) if q is not None]
        if len(found) < len(self.gpus):
            return None
        return min(found, key=lambda q: q.value)


def load_profile(path: Path) -> HardwareProfile:
    """Read and validate a hardware.json. Raises InputError naming the field that is wrong."""
    profile = decode_json(read_bytes(path, "hardware profile"), HardwareProfile, str(path))
    if profile.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {profile.schema_version} is newer than this sgtune reads "
            f"({SCHEMA_VERSION}); upgrade sgtune or probe again"
        )
    if not profile.gpus:
        raise InputError(
            f"{path}: lists no GPU, so there is nothing to plan for; probe a machine with GPUs "
            "or name one from the catalogue (--hardware h200x8)"
        )
    if profile.gpu_count > 4096:
        raise InputError(f"{path}: {profile.gpu_count} GPUs is beyond what sgtune plans for (4096)")
    return profile


def save_profile(profile: HardwareProfile, path: Path) -> None:
    """Write a hardware.json atomically. Raises InputError when the place cannot be written."""
    write_atomic(path, encode_json(profile) + "\n")
