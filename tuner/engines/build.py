"""Builds the engines that start servers: the machine's GPUs held, what a child process must know written down."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from hwprobe.errors import InputError
from hwprobe.files import encode_json, read_bytes, write_atomic
from hwprobe.inventory.looks import read_throttles
from hwprobe.inventory.nvml import read_inventory
from models.serving.estimate import Context
from models.workload import Slo
from tuner.bench.point import Settings, measure_for_tuner
from tuner.choices import EngineName
from tuner.engines.live import LiveEngine
from tuner.engines.runners import EmulatedRunner, Runner
from tuner.engines.traced import TraceSending, measure_either
from tuner.engines.world import World
from tuner.server.gate import GpuLocks
from tuner.server.readiness import Smoke
from tuner.server.strays import end_run


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How a live engine launches and measures: the weights, a folder for logs, seconds per point, and what to check.

    `run` marks what it starts, so that the next session of the same run can end what this one left.
    """

    model_path: str
    trials: Path
    point_s: float
    seed: int
    extra_flags: tuple[str, ...] = ()
    smoke: Smoke | None = None
    slos: tuple[Slo, ...] = ()
    run: str = ""


def live_engine(runner: Runner, context: Context, live: LiveSettings) -> LiveEngine:
    """Build a live engine on a runner, holding this machine's GPUs unless the runner emulates them.

    Raises InputError when another tuner holds one of them.
    """
    closing = ExitStack()
    uuids: list[str] = []
    if runner.name != EngineName.EMULATED:
        uuids = [gpu.uuid for gpu in read_inventory().gpus if gpu.uuid]
        closing.callback(GpuLocks(uuids).release)
    if runner.containers is not None:
        if not uuids:  # the daemon may see GPUs that this process does not
            closing.callback(GpuLocks([runner.containers.daemon], what="daemon").release)
        closing.callback(runner.containers.sweep_if_possible)
    if live.run:
        end_run(live.run)

    def throttles() -> list[str]:
        return sorted({reason for reasons in read_throttles(uuids).values() for reason in reasons}) if uuids else []

    settings = Settings(least_s=live.point_s, vocabulary=context.arch.vocab_size, slos=live.slos)
    sending = TraceSending(seed=live.seed, vocabulary=context.arch.vocab_size, slos=live.slos, throttles=throttles)
    return LiveEngine(
        runner=runner,
        context=context,
        model_path=live.model_path,
        trials=live.trials,
        measure=measure_either(measure_for_tuner(live.seed, settings, throttles), sending),
        extra_flags=live.extra_flags,
        smoke=live.smoke,
        run=live.run,
        closing=closing,
    )


def run_mark(folder: Path) -> str:
    """Return what marks the processes and containers of a run: made once, kept in its folder."""
    file = folder / "mark"
    if not file.exists():
        write_atomic(file, secrets.token_hex(6) + "\n")
    return read_bytes(file, "mark of the run", most_bytes=64).decode(errors="replace").strip()


def check_emulator() -> None:
    """Raise InputError where the emulated server could not start."""
    if find_spec("aiohttp") is None:
        raise InputError("--engine emulated needs aiohttp: in the checkout, pip install -e '.[tune]'")


def emulated_runner(where: Path, context: Context, world: World, seed: int) -> EmulatedRunner:
    """Write what the emulated server has to know beside `where`/hardware.json, and name it. Raises InputError."""
    check_emulator()
    write_atomic(where / "emulated/world.toml", world_toml(world))
    write_atomic(where / "emulated/profile.json", encode_json(context.engine) + "\n")
    write_atomic(where / "emulated/model.json", encode_json(context.arch) + "\n")
    skew = () if context.sigma is None else ("--expert-skew", str(context.sigma))
    options = (
        "--hardware", str(where / "hardware.json"), "--world", str(where / "emulated/world.toml"),
        "--profile", str(where / "emulated/profile.json"), "--architecture", str(where / "emulated/model.json"),
        "--sglang-version", str(context.version), "--mtp-acceptance", str(context.acceptance), *skew,
        "--seed", str(seed),
    )  # fmt: skip
    return EmulatedRunner(options=options)


def world_toml(world: World) -> str:
    """Return a world as the file it could have been read from."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(world)))


def _without_none(value: Any) -> Any:
    """Leave out what is None: TOML has no word for it."""
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
