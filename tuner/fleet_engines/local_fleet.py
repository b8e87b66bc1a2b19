"""Deployments on the `local` engine: the real SGLang on this machine's GPUs, behind SGLang's own router."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from hwprobe.inventory.looks import read_throttles
from hwprobe.inventory.nvml import read_inventory
from models.config import ServerConfig
from planner.fleets.deployed import server_context
from planner.plans.make import PlanQuestion
from tuner.bench.point import Settings, measure_for_tuner
from tuner.engines.build import LiveSettings
from tuner.engines.live import LiveEngine
from tuner.engines.runners import LocalRunner
from tuner.fleet_engines.live_fleet import LiveFleetEngine
from tuner.fleet_engines.machine_parts import MachinePart, cores_divided, gpus_divided
from tuner.fleet_engines.router import check_router
from tuner.server.gate import GpuLocks
from tuner.server.strays import end_run


def on_cpu(flags: Sequence[str]) -> bool:
    """Say whether SGLang's flags keep it off GPUs."""
    return "--device=cpu" in flags or ("--device", "cpu") in pairwise(flags)


def local_fleet_engine(
    question: PlanQuestion, live: LiveSettings, python: str, *, cwd: Path | None = None
) -> LiveFleetEngine:
    """Build the engine, holding this machine's GPUs; servers start with the interpreter `python`, in `cwd`.

    Raises InputError when another tuner holds one of the GPUs, or without a router.
    """
    check_router()
    without_gpus = on_cpu(live.extra_flags)
    with ExitStack() as undo:
        uuids = [] if without_gpus else [gpu.uuid for gpu in read_inventory().gpus if gpu.uuid]
        undo.callback(GpuLocks(uuids).release)
        if live.run:
            end_run(live.run)
        closing = undo.pop_all()

    def throttles() -> list[str]:
        return sorted({reason for reasons in read_throttles(uuids).values() for reason in reasons}) if uuids else []

    settings = Settings(least_s=live.point_s, vocabulary=question.arch.vocab_size, slos=live.slos)
    measure = measure_for_tuner(live.seed, settings, throttles)

    def engine_of(config: ServerConfig, name: str, part: MachinePart) -> LiveEngine:
        return LiveEngine(
            runner=LocalRunner(python=python, cwd=cwd, cores=part.cores), context=server_context(question, config),
            model_path=live.model_path, trials=live.trials, measure=measure, extra_flags=live.extra_flags,
            smoke=live.smoke, run=live.run,
        )  # fmt: skip

    return LiveFleetEngine(
        name="local", engine_of=engine_of, trials=live.trials, run=live.run, python=sys.executable, measure=measure,
        measure_alone_with=measure_for_tuner(live.seed, replace(settings, alone=True), throttles),
        divide=partial(cores_divided, whole=question.hardware.gpus_per_node) if without_gpus else gpus_divided,
        closing=closing,
    )  # fmt: skip
