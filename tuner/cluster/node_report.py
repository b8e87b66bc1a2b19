"""What a node is, as a process of the cluster finds it: versions, limits, clock, what the cluster does to workers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from hwprobe.inventory.nvml import read_inventory
from hwprobe.probe import Measured, assemble
from hwprobe.profile import HardwareProfile
from tuner import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One node. `clock_s` is its time of day when asked; niceness and OOM score are those servers would inherit.

    `profile` is what hwprobe finds there without measuring: cards, links, drivers, and warnings about any of them.
    """

    host: str
    python: str
    sgtune: str
    ray: str
    gpus: tuple[str, ...]
    gpu_memory_mib: float | None
    cpus: int
    memory_gib: float
    niceness: int
    oom_score_adj: int
    open_files: int
    clock_s: float
    profile: HardwareProfile

    @property
    def complaints(self) -> list[str]:
        """What would falsify measurements or end servers early on this node."""
        complaints = []
        if self.niceness > 0:
            complaints.append(f"servers would run at nice {self.niceness}: start Ray with RAY_worker_niceness=0")
        if self.oom_score_adj > 0:
            complaints.append(
                f"servers would be killed first for memory (oom_score_adj {self.oom_score_adj}): start Ray with "
                "RAY_worker_oom_score_adjustment=0"
            )
        if self.open_files < 4096:
            complaints.append(f"{self.open_files} open files: raise `ulimit -n` to 65536")
        return [*complaints, *(self.profile.warnings if self.gpus else ())]


def report() -> NodeReport:
    """Return what this process's machine is."""
    inventory = read_inventory()
    gpus = inventory.gpus
    return NodeReport(
        host=socket.gethostname(),
        python=platform.python_version(),
        sgtune=__version__,
        ray=importlib.metadata.version("ray"),
        gpus=tuple(gpu.name for gpu in gpus),
        gpu_memory_mib=gpus[0].memory_mib if gpus else None,
        cpus=os.cpu_count() or 0,
        memory_gib=psutil.virtual_memory().total / 2**30,
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        clock_s=time.time(),
        profile=assemble(inventory, Measured()),
    )
