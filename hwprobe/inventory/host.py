"""The computer around the GPUs: processor, memory, shared memory. Works everywhere psutil does."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from hwprobe.profile import HostProfile

GIB = 2**30


def read_host() -> HostProfile:
    """Return what the operating system says of this computer."""
    return HostProfile(
        cpu=_cpu_name(),
        logical_cpus=psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / GIB, 2),
        shm_gib=_shm_gib(),
        os=platform.platform(terse=True),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _shm_gib() -> float | None:
    """Return the size of /dev/shm: NCCL and SGLang's ranks need gigabytes of it."""
    try:
        return round(psutil.disk_usage("/dev/shm").total / GIB, 2)
    except OSError:
        return None
