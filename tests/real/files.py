"""What tests of real components export: one server of SGLang's newest release, as files for every place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from packaging.version import Version

from models.config import ServerConfig
from models.version import NEWEST
from planner.launch import launch_spec
from planner.launch_files.files import export_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.targets import Target

IMAGE = f"lmsysorg/sglang:v{NEWEST}"
MAY_RAISE_LIMITS = 1 << 24  # CAP_SYS_RESOURCE, in linux/capability.h


def exported(target: Target, folder: Path, port: int) -> Path:
    """Write the file of a target for a server of eight GPUs that listens on a port of this machine."""
    spec = launch_spec(ServerConfig(tp_size=8, mem_fraction_static=0.88), Version(NEWEST), port=port)
    return export_files(spec, Provenance(lines=()), folder, [target], Parameters(port=port))[0]


def wait_until(true: Callable[[], object], seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def may_raise_limits() -> bool:
    """Whether root may raise limits here (`memlock: -1`); in a sandbox it often may not."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) & MAY_RAISE_LIMITS)
