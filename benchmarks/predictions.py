#!/usr/bin/env python3
"""How many closed-form predictions a second the vector path makes on one core.

    OMP_NUM_THREADS=1 python benchmarks/predictions.py

Every configuration that sgtune plan considers for 8xH200 (SGLang 0.5.12) is predicted for a row of client counts
with the same equations that answer a single question; the figure is predictions (configuration x clients) per
second of wall-clock time, the best of several rounds as the machine may be shared.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.engine.versions import profile_for
from models.layout import table_of
from models.machine import machine_of
from models.serving.closed_form import closed_loop
from models.serving.estimate import Context, demand_of
from models.workload import Workload
from planner.plans.space import default_space, fill_grid, shapes

CLIENTS = 64
ROUNDS = 7
SLICE = 256  # configurations at a time: intermediate arrays stay in the cache


def main() -> int:
    """Time the rounds and print the best."""
    version = Version("0.5.12")
    machine = machine_of(hardware_from_catalogue("h200x8"))
    context = Context(arch=deepseek_r1(), machine=machine, engine=profile_for(version), version=version)
    space = default_space(machine, version, arch=context.arch)
    configs = [c for shape in shapes(space) for c in fill_grid(shape, space, 1024, context)]
    clients = np.unique(np.geomspace(1, 2048, CLIENTS).round())
    demand = replace(demand_of(context, Workload.checked(1000, 1000, 1)), concurrency=clients[None, :])
    whole = table_of(configs)
    tables = [whole.take(np.arange(i, min(i + SLICE, len(configs)))) for i in range(0, len(configs), SLICE)]
    ready = [(context.system(table.column()), context.memory(table).kv_tokens[:, None]) for table in tables]
    best = min(_round(ready, demand) for _ in range(ROUNDS))
    count = len(configs) * len(clients)
    print(f"{len(configs):,} configurations x {len(clients)} client counts: {count / best:,.0f} predictions a second")
    return 0


def _round(ready: list, demand: object) -> float:
    began = time.perf_counter()
    for system, kv_tokens in ready:
        closed_loop(system, demand, kv_tokens)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
