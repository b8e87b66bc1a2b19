"""Deployments on the `emulated` engine: sgtune's own servers in a world, behind SGLang's own router."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hwprobe.files import encode_json, write_atomic
from hwprobe.profile import HardwareProfile
from models.config import ServerConfig
from planner.fleets.deployed import ContextOf
from tuner.bench.point import Settings, measure_for_tuner
from tuner.engines.build import LiveSettings, emulated_runner, live_engine
from tuner.engines.live import LiveEngine
from tuner.engines.runners import EmulatedRunner
from tuner.engines.world import World
from tuner.fleet_engines.live_fleet import LiveFleetEngine
from tuner.fleet_engines.machine_parts import MachinePart
from tuner.fleet_engines.router import check_router
from tuner.server.strays import end_run


def emulated_fleet_engine(
    where: Path, hardware: HardwareProfile, belief_of: ContextOf, live: LiveSettings, world: World
) -> LiveFleetEngine:
    """Build the engine in a run folder; each size of server has its machine written there. Raises InputError."""
    check_router()
    if live.run:
        end_run(live.run)
    engines: dict[tuple[int, int], LiveEngine] = {}

    def engine_of(config: ServerConfig, name: str, part: MachinePart) -> LiveEngine:
        size = (config.nnodes, config.gpu_count // config.nnodes)
        if size not in engines:
            engines[size] = _engine(where / "machines" / f"{size[0]}x{size[1]}", hardware, config)
        engine = engines[size]
        assert isinstance(engine.runner, EmulatedRunner)  # made below
        return replace(engine, runner=replace(engine.runner, options=(*engine.runner.options, "--server", name)))

    def _engine(folder: Path, hardware: HardwareProfile, config: ServerConfig) -> LiveEngine:
        gpus = hardware.gpus[: config.gpu_count // config.nnodes]
        machine = replace(hardware, nodes=config.nnodes, gpus=gpus)
        write_atomic(folder / "hardware.json", encode_json(machine) + "\n")
        context = belief_of(config)
        engine = live_engine(emulated_runner(folder, context, world, live.seed), context, replace(live, run=""))
        return replace(engine, run=live.run)

    settings = Settings(least_s=live.point_s, slos=live.slos)
    return LiveFleetEngine(
        name="emulated", engine_of=engine_of, trials=live.trials, run=live.run, python=sys.executable,
        measure=measure_for_tuner(live.seed, settings),
        measure_alone_with=measure_for_tuner(live.seed, replace(settings, alone=True)),
    )  # fmt: skip
