"""Servers that go wrong on purpose: the emulated server in a world with faults, under the real supervision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.files import encode_json
from hwprobe.inventory.nvml import Inventory
from models.config import ServerConfig
from models.serving.estimate import Context
from models.workload import Workload
from planner.sglang.resolver import resolve
from tuner.bench.point import Settings, measure_for_tuner
from tuner.engines.build import world_toml
from tuner.engines.faults import Fault
from tuner.engines.live import LiveEngine
from tuner.engines.runners import EmulatedRunner
from tuner.engines.world import World
from tuner.server.gate import Gate
from tuner.server.ports import Ports
from tuner.server.readiness import PHASES, Phase

# Nobody waits minutes for a server that hangs; importing is real work, which a busy machine may take long over.
QUICK_PHASES: tuple[Phase, ...] = tuple(
    phase if phase.name == "import" else replace(phase, stall_s=4.0) for phase in PHASES
)
NO_GPUS = Gate(read=lambda: Inventory(absent="none", software={}))
WORKLOAD = Workload.checked(32, 8, 2)


@pytest.fixture
def newest(context: Callable[..., Context]) -> Context:
    return context("h200x8", "0.5.23")


@pytest.fixture
def config(newest: Context) -> ServerConfig:
    return resolve(ServerConfig(tp_size=8), newest.arch, newest.machine, newest.version).config


Launcher = Callable[..., LiveEngine]


@pytest.fixture
def engine(newest: Context, tmp_path: Path) -> Iterator[Launcher]:
    """Return a maker of live engines whose emulated servers suffer the faults given."""
    made: list[LiveEngine] = []

    def make(*faults: Fault, gate: Gate = NO_GPUS, ports: Ports | None = None, boot_s: float = 0.2) -> LiveEngine:
        world = tmp_path / "world.toml"
        world.write_text(world_toml(World(name="faulty", boot_s=boot_s, noise=0.0, faults=faults)))
        (tmp_path / "hardware.json").write_text(encode_json(hardware_from_catalogue("h200x8")))
        options = ("--hardware", str(tmp_path / "hardware.json"), "--world", str(world))
        made.append(
            LiveEngine(
                runner=EmulatedRunner(options=options),
                context=newest,
                model_path="test/model",
                trials=tmp_path / "trials",
                measure=measure_for_tuner(0, Settings(least_s=0.3, waves=2.0, most_s=20.0, vocabulary=1000)),
                gate=gate,
                ports=ports or Ports(),
                phases=QUICK_PHASES,
                drain_s=2.0,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()
