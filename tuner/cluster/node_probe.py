"""The measurements of one node, made by a process of the cluster there while no server runs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hwprobe.choices import DeviceName
from hwprobe.measure import Runner, run_child
from hwprobe.profile import HardwareProfile
from hwprobe.session import run_probe
from tuner.cluster.seat import FOREIGN


def probe_node(*, nvml: Any | None = None, runner: Runner = run_child) -> HardwareProfile:
    """Measure this machine's GPUs and its host quickly; what could not be measured is among the profile's warnings.

    `nvml` and `runner` stand in for pynvml and for child processes in tests.
    """
    for name in FOREIGN:
        os.environ.pop(name, None)
    host = run_probe(DeviceName.CPU, quick=True, nvml=nvml, runner=runner).profile
    profile = run_probe(DeviceName.AUTO, quick=True, nvml=nvml, runner=runner).profile
    if not profile.gpus:
        return host
    more = tuple(warning for warning in host.warnings if warning not in profile.warnings)
    software = host.software | profile.software
    return replace(profile, host=host.host, software=software, warnings=(*profile.warnings, *more))
