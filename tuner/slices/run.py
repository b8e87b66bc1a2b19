"""Runs the slices of a question: one server after the other, or side by side where the machine has room for all."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError, SgtuneError
from hwprobe.profile import HardwareProfile
from models.architecture import ModelArchitecture
from models.serving.estimate import Context
from tuner.choices import EngineName
from tuner.engines.build import LiveSettings, emulated_runner, live_engine
from tuner.engines.containers import Containers
from tuner.engines.on_nodes import NodeSetup, check_on_nodes, cluster_engine
from tuner.engines.runners import DockerRunner, LocalRunner, Runner, hub_folder
from tuner.engines.simulated import SimulatedEngine
from tuner.engines.world import World
from tuner.seam import LaunchFailed, LaunchOrder, OrderedEngine, Server
from tuner.server.ports import Ports, candidates
from tuner.slices.launch import Layout, SliceBoot, SliceLoad, launch_words, measure_loads

# Servers that start at the same time take each an eighth of the ports, so that none takes another's.
MOST_TOGETHER = 8

Shown = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceQuestion:
    """What is to be measured on slices, and where. `where` is a folder for logs that holds hardware.json.

    With `cluster` the slices run on nodes of that Ray cluster; `hardware` is then the machine of a slice.
    """

    here: Layout
    slices: tuple[ModelArchitecture, ...]
    loads: tuple[SliceLoad, ...]
    engine: EngineName
    world: World
    where: Path
    model_path: str
    python: str = "python3"
    image: str | None = None
    repeats: int = 3
    rounds: int = 1
    together: bool = False
    most_kv_tokens: float = math.inf
    point_s: float = 10.0
    seed: int = 0
    hardware: HardwareProfile | None = None
    cluster: str | None = None

    def checked(self) -> SliceQuestion:
        """Raise InputError for a question that has no meaning or could not start; return it otherwise."""
        if not self.loads:
            raise InputError("--decode and --prefill are both empty: nothing would be measured")
        if not 1 <= self.repeats <= 100:
            raise InputError(f"--repeats is {self.repeats}; it must be between 1 and 100")
        if not 1 <= self.rounds <= 100:
            raise InputError(f"--rounds is {self.rounds}; it must be between 1 and 100")
        if self.cluster is not None:
            check_on_nodes(self.engine)
            if self.together:
                raise InputError("--together runs the slices side by side on one machine: leave it out with --cluster")
            return self
        if self.engine is not EngineName.SIMULATED and self.here.context.machine.nodes > 1:
            raise InputError(
                f"--engine {self.engine} starts servers on this machine; {self.here.context.machine.name} is several: "
                "name their cluster with --cluster"
            )
        if self.engine is EngineName.DOCKER and not self.image:
            raise InputError("--engine docker needs --image, as in --image lmsysorg/sglang:v0.5.23")
        program = {EngineName.LOCAL: self.python, EngineName.DOCKER: "docker"}.get(self.engine)
        if program is not None and shutil.which(program) is None:
            flag = "--python" if self.engine is EngineName.LOCAL else "--engine docker"
            raise InputError(f"{flag}: no program '{program}' here that could be started")
        return self


def run_slices(question: SliceQuestion, shown: Shown) -> Generator[dict[str, Any], None, None]:
    """Boot the slices and yield every point as a record the moment it is measured; closed early, it stops them.

    Raises SgtuneError, naming the slice and the log's own words, when one does not start or dies.
    """
    groups = [question.slices] if question.together else [(arch,) for arch in question.slices]
    boots = [group for _ in range(question.rounds) for group in groups]
    for number, group in enumerate(boots):
        try:
            with ExitStack() as stack:
                servers = _start(question, group, number * len(question.slices), stack, shown)
                boot = SliceBoot(here=question.here, number=number, loads=question.loads, repeats=question.repeats)
                yield from measure_loads(boot, servers, shown)
        except LaunchFailed as failure:
            layers = ", ".join(str(arch.num_hidden_layers) for arch in group)
            raise SgtuneError(
                f"a slice ({layers} layers) did not run ({failure.kind}): {failure.evidence}\n"
                f"its log is in {question.where / 'trials'}; points measured before are kept"
            ) from failure


def _start(
    question: SliceQuestion, group: Sequence[ModelArchitecture], first: int, stack: ExitStack, shown: Shown
) -> Mapping[ModelArchitecture, Server]:
    """Start the group's servers at the same time; whatever happens, those that did start are stopped."""
    shown(f"starting {' and '.join(str(arch.num_hidden_layers) for arch in group)} layers on {question.engine}")
    with ThreadPoolExecutor(len(group)) as pool:
        starting = [pool.submit(_launch, question, arch, first + index) for index, arch in enumerate(group)]
    failed = [future.exception() for future in starting if future.exception()]
    servers: dict[ModelArchitecture, Server] = {}
    for arch, future in zip(group, starting, strict=True):
        if future.exception() is None:
            servers[arch], close = future.result()
            stack.callback(close)
            stack.callback(servers[arch].stop)
    if failed[:1] and failed[0] is not None:
        raise failed[0]
    boots = ", ".join(f"{server.info().boot_s:.0f} s" for server in servers.values())
    shown(f"ready after {boots}")
    return servers


def _launch(question: SliceQuestion, arch: ModelArchitecture, number: int) -> tuple[Server, Callable[[], None]]:
    """Start one slice; return its server and what lets go of the machine after it."""
    layout = question.here
    context = replace(layout.context, arch=arch)
    if question.engine is EngineName.SIMULATED:
        engine = SimulatedEngine(question.world, context, question.seed)
        return engine.launch(layout.config.with_flags(max_total_tokens=question.most_kv_tokens), number), engine.close
    settings = LiveSettings(
        model_path=question.model_path, trials=question.where / "trials", point_s=question.point_s, seed=question.seed
    )
    typed = launch_words(layout, arch, question.model_path, question.most_kv_tokens)
    order = LaunchOrder(config=layout.config, number=number, typed=tuple(typed))
    live = _live(question, context, settings, number)
    with ExitStack() as undo:
        undo.callback(live.close)
        server = live.launch_order(order)
        undo.pop_all()
    return server, live.close


def _live(question: SliceQuestion, context: Context, settings: LiveSettings, number: int) -> OrderedEngine:
    """Return what starts a slice: on the nodes of a cluster, or here."""
    if question.cluster is not None and question.hardware is not None:
        setup = NodeSetup(
            hardware=question.hardware, context=context, engine=question.engine, world=question.world, live=settings,
            python=question.python,
        )  # fmt: skip
        return cluster_engine(question.cluster, setup, question.where)
    live = live_engine(_runner(question), context, settings)
    if not question.together:
        return live
    return replace(live, ports=Ports(candidates()[number % MOST_TOGETHER :: MOST_TOGETHER]))


@cache
def _containers(where: Path) -> Containers:
    """Return the containers of one measurement: slices that run together are no strangers to one another."""
    return Containers()


def _runner(question: SliceQuestion) -> Runner:
    if question.engine is EngineName.LOCAL:
        return LocalRunner(python=question.python)
    if question.engine is EngineName.DOCKER:
        containers = _containers(question.where)
        return DockerRunner(
            image=str(question.image), model_path=question.model_path, hub=hub_folder(), containers=containers
        )
    return emulated_runner(question.where, question.here.context, question.world, question.seed)
