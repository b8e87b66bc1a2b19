"""HardwareProfile: a machine's figures, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from hwprobe.bounds import MACHINE, check_fields, within
from hwprobe.errors import InputError
from hwprobe.files import content_hash, decode_json, encode_json, read_bytes, write_atomic

SCHEMA_VERSION = 1
# Fields of the profile, a GPU and its state that were added without a new schema: older readers pass over them.
LATER = ("p2p_both_gb_s", "all_to_all_gb_s")
LATER_OF_GPU = ("working",)
LATER_OF_STATE = ("fabric_health", "nvlink_errors")

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Matrix = tuple[tuple[NotNegative | None, ...], ...]
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
    """One number, its basis and source.

    `spread` is the relative spread of repeated measurements (interquartile range over median);
    `sheet` is the data-sheet figure a measurement replaced, in the same unit.
    """

    value: Positive
    basis: Basis
    source: str = ""
    spread: NotNegative | None = None
    sheet: Positive | None = None

    @property
    def fraction(self) -> float | None:
        """Return measured over data sheet, or None where there is no sheet to compare with."""
        return self.value / self.sheet if self.sheet else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has a GPU open; `used_mib` and `name` where NVML or the system tells."""

    pid: int
    name: str | None = None
    used_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What NVML said of one GPU at the time of the probe; None where it refused, see `missing`.

    Clocks in MHz, power in W, memory in MiB (used excludes reserved). `nvlinks` counts active of
    present links, `nvlink_remote` is what they lead to (switch, gpu, ibmnpu); `ecc_uncorrected` and
    `remapped_rows` count errors over the card's life, `remap_pending` asks for a reset. `nvlink_errors` are NVML's
    counters over all links by name, those above 0 only; `fabric_health` says in words what the fabric finds wrong.
    """

    memory_used_mib: float | None = None
    memory_reserved_mib: float | None = None
    memory_bus_bits: int | None = None
    memory_clock_mhz: int | None = None
    memory_max_clock_mhz: int | None = None
    sm_clock_mhz: int | None = None
    sm_max_clock_mhz: int | None = None
    utilization_percent: int | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    mig: bool | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_width: int | None = None
    nvlinks_active: int | None = None
    nvlinks: int | None = None
    nvlink_remote: str | None = None
    fabric: str | None = None
    fabric_health: tuple[str, ...] = ()
    nvlink_errors: dict[str, int] | None = None
    holders: tuple[Holder, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingState:
    """A GPU while one measurement ran: medians over `looks` (MHz, W, degrees Celsius); None where NVML refused."""

    looks: int
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfile:
    """One GPU. Bandwidths are decimal GB/s; NVLink is per direction; rates are dense TFLOP/s.

    `measured` holds every measurement by name (the unit ends the name), also those that no
    prediction uses; the fields above it hold what predictions use. `working` is the card's state during each
    measurement, by the measurement's words.
    """

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
    measured: dict[str, Quantity] = field(default_factory=dict)
    state: GpuState | None = None
    working: dict[str, WorkingState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """The computer around the GPUs; `measured` holds what `sgtune probe --device cpu` measured of it."""

    cpu: str
    logical_cpus: int
    memory_gib: float
    shm_gib: float | None = None
    os: str = ""
    measured: dict[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """One all-reduce of `message_bytes` among `ranks`; time_us is that of the slowest rank."""

    ranks: Annotated[int, Meta(ge=2)]
    message_bytes: PositiveInt
    backend: Text
    time_us: Quantity

    @property
    def bus_gb_s(self) -> float:
        """Return nccl-tests' bus bandwidth: bytes/time * 2(n-1)/n, in decimal GB/s."""
        return self.message_bytes / self.time_us.value * 2 * (self.ranks - 1) / self.ranks / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """A machine of `nodes` equal nodes; `gpus` are those of one node.

    `topology` and `p2p` are matrices over `gpus` as NVML words them; `p2p_gb_s` and `p2p_latency_us`
    are measured from row to column (None: no direct access), the latter by torch's copy of 4 KiB, mostly its
    barrier between two GPUs; `p2p_both_gb_s` is the sum of both directions at once, `all_to_all_gb_s` what each GPU
    sends while all send to all; `internode_gb_s` is the network's GB/s per GPU and direction; `published_as` is the
    name public measurements use; `command` wrote the file.
    """

    name: Text
    gpus: tuple[GpuProfile, ...]
    nodes: PositiveInt = 1
    internode_gb_s: Quantity | None = None
    host: HostProfile | None = None
    software: dict[str, str] = field(default_factory=dict)
    topology: tuple[tuple[str, ...], ...] | None = None
    p2p: tuple[tuple[str, ...], ...] | None = None
    p2p_gb_s: Matrix | None = None
    p2p_latency_us: Matrix | None = None
    p2p_both_gb_s: Matrix | None = None
    all_to_all_gb_s: Quantity | None = None
    all_reduce: tuple[AllReduce, ...] = ()
    warnings: tuple[str, ...] = ()
    published_as: str | None = None
    created: str | None = None
    command: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def gpus_per_node(self) -> int:
        return len(self.gpus)

    @property
    def gpu_count(self) -> int:
        return len(self.gpus) * self.nodes


def read_profile(path: Path) -> HardwareProfile:
    """Read and validate a hardware.json, with or without GPUs. Raises InputError naming the wrong field."""
    profile = decode_json(read_bytes(path, "hardware profile"), HardwareProfile, str(path))
    if profile.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {profile.schema_version} is newer than this sgtune reads "
            f"({SCHEMA_VERSION}); upgrade sgtune or probe again"
        )
    for name in ("topology", "p2p", "p2p_gb_s", "p2p_latency_us", "p2p_both_gb_s"):
        rows = getattr(profile, name)
        if rows is not None and {len(rows), *map(len, rows)} != {len(profile.gpus)}:
            raise InputError(f"{path}: {name} is not a square over the {len(profile.gpus)} GPUs of gpus")
    _check_bounds(profile, str(path))
    return profile


def _check_bounds(profile: HardwareProfile, where: str) -> None:
    """Raise InputError for the first figure that no machine has."""
    for number, gpu in enumerate(profile.gpus):
        _check_quantities(gpu, where, f"gpus[{number}].")
    _check_quantities(profile, where)
    for number, reduced in enumerate(profile.all_reduce):
        place = f"all_reduce[{number}]."
        _check_quantities(reduced, where, place)
        check_fields(reduced, {name: MACHINE[name] for name in ("ranks", "message_bytes")}, where, place)
    if profile.host is not None:
        bounds = {name: MACHINE[name] for name in ("memory_gib", "shm_gib", "logical_cpus")}
        check_fields(profile.host, bounds, where, "host.")
    for name in ("p2p_gb_s", "p2p_latency_us", "p2p_both_gb_s"):
        for row in getattr(profile, name) or ():
            for value in row:
                if value is not None:
                    within(value, name, MACHINE[name], where)


def _check_quantities(record: object, where: str, place: str = "") -> None:
    for name, bound in MACHINE.items():
        quantity = getattr(record, name, None)
        if isinstance(quantity, Quantity):
            within(quantity.value, f"{place}{name}", bound, where)
            within(quantity.value if quantity.sheet is None else quantity.sheet, f"{place}{name}.sheet", bound, where)


def load_profile(path: Path) -> HardwareProfile:
    """Read a hardware.json to plan with. Raises InputError when it is wrong or lists no GPU."""
    profile = read_profile(path)
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


def hardware_hash(profile: HardwareProfile) -> str:
    """Return a short hash of the machine's figures, not of when or how they were written down."""
    content = msgspec.to_builtins(replace(profile, created=None))
    # Fields that came later are left out where they are empty: a machine keeps the hash that older files hold.
    states = [gpu["state"] for gpu in content["gpus"] if gpu["state"]]
    for records, names in (([content], LATER), (content["gpus"], LATER_OF_GPU), (states, LATER_OF_STATE)):
        for record in records:
            for name in names:
                if not record[name]:
                    del record[name]
    return content_hash(content)
