"""The smallest machine of the catalogue that holds a checkpoint and can run it, by memory and rules alone."""

from __future__ import annotations

from functools import cache

from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import memory
from models.layout import table_of
from models.machine import Machine, machine_of
from planner.plans.space import checkpoint_flags
from planner.rules import Question, first_error
from planner.sglang.resolver import resolve

GPUS = ("a100", "h100", "h20", "h200", "b200", "b300", "mi300", "mi325", "mi355")
COUNTS = ("{}x4", "{}x8", "2x{}x8", "4x{}x8")
# A launch has room for one request of so many tokens on a rank, 16 requests, and SGLang's own spare memory.
ROOM_TOKENS = 16_384
REQUESTS = 16
CHUNK = 4_096
SPARE_GIB = 5.0


@cache
def machines() -> tuple[tuple[str, Machine], ...]:
    """Return the machines that are tried, those with the least memory first."""
    named = [
        (count.format(gpu), machine_of(hardware_from_catalogue(count.format(gpu)))) for gpu in GPUS for count in COUNTS
    ]
    return tuple(sorted(named, key=lambda each: (each[1].memory_gib * each[1].gpu_count, each[1].gpu_count)))


def runs_on(arch: ModelArchitecture, version: Version) -> tuple[str, ...]:
    """Return the smallest machine of every GPU that holds the checkpoint under TP, smallest first."""
    smallest_of: dict[str, str] = {}
    for name, machine in machines():
        gpu = name.removeprefix("2x").removeprefix("4x").rpartition("x")[0]
        if gpu not in smallest_of and _runs(arch, machine, version):
            smallest_of[gpu] = name
    return tuple(smallest_of.values())


def _runs(arch: ModelArchitecture, machine: Machine, version: Version) -> bool:
    gpus = machine.gpu_count
    return any(_runs_as(arch, machine, version, ep) for ep in sorted({1, gpus}))


def _runs_as(arch: ModelArchitecture, machine: Machine, version: Version, ep: int) -> bool:
    typed = ServerConfig(
        tp_size=machine.gpu_count,
        ep_size=ep,
        nnodes=machine.nodes,
        max_running_requests=REQUESTS,
        cuda_graph_max_bs_decode=REQUESTS,
        chunked_prefill_size=CHUNK,
    ).with_flags(**checkpoint_flags(arch, version))
    config = resolve(typed, arch, machine, version).config
    if first_error(Question(config=config, arch=arch, machine=machine, version=version)) is not None:
        return False
    filled = memory(arch, machine, table_of([config]), version)
    return float(filled.shortage(ROOM_TOKENS, SPARE_GIB)[0]) <= 0.0


def tp8_weights_gib(arch: ModelArchitecture, version: Version) -> float:
    """Return the weights of one of eight GPUs under plain TP, in GiB."""
    machine = machine_of(hardware_from_catalogue("b200x8"))
    config = resolve(ServerConfig(tp_size=8), arch, machine, version).config
    return float(memory(arch, machine, table_of([config]), version).weights.total[0])
