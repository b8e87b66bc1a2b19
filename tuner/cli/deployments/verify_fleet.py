"""`sgtune verify DIR` of a deployment: all its servers and their router, started as the bundle says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hwprobe.holds import scratch_folder
from tuner.choices import EngineName
from tuner.cli.common.consent import confirm_start
from tuner.cli.common.terminal import console

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.plans.make import PlanQuestion
    from tuner.engines.build import LiveSettings
    from tuner.engines.world import World
    from tuner.fleet_engines.live_fleet import LiveFleetEngine
    from tuner.launch_files.deployment_verification import DeploymentClaim
    from tuner.launch_files.verification import Verified
    from tuner.seam import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetVerification:
    """A deployment's bundle: its folder, where it runs, and what of it was granted; `refused` are other options."""

    folder: Path
    engine: EngineName
    world: World
    hardware: str | None
    model: Path | None
    profile: Path | None
    point_s: float
    seed: int
    logs: Path | None
    model_path: str | None
    allow_env: tuple[str, ...]
    python: str
    yes: bool
    refused: Mapping[str, object]


def verify_fleet(bundle: FleetVerification) -> Verified:
    """Verify a deployment's bundle. Raises InputError for what cannot be verified."""
    from hwprobe.errors import InputError
    from tuner.launch_files.deployment_verification import read_deployment, verify_deployment

    if bundle.engine not in (EngineName.EMULATED, EngineName.LOCAL):
        raise InputError(
            f"'{bundle.folder}' is a deployment: it is verified with --engine local or emulated, not {bundle.engine}; "
            "start it as its README says, and measure with sgtune bench --url ROUTER --server URL"
        )
    others = [option for option, value in bundle.refused.items() if value]
    if others:
        raise InputError(f"'{bundle.folder}' is a deployment: leave {others[0]} out")
    claim = read_deployment(bundle.folder)
    screen = console(stderr=True)
    with scratch_folder("verify") as temporary:
        launch, close = _launch(claim, bundle, (bundle.logs or temporary).absolute())
        screen.print(f"starting {claim.written.name} on the {bundle.engine} engine", markup=False)
        try:
            shown = partial(screen.print, markup=False)
            return verify_deployment(claim, launch, shown, simulated=bundle.engine is EngineName.EMULATED)
        finally:
            close()


def _launch(
    claim: DeploymentClaim, bundle: FleetVerification, where: Path
) -> tuple[Callable[[], Server], Callable[[], None]]:
    """Return what launches the deployment as its files type it, and what lets go of the machine."""
    from planner.fleets.deployed import server_context
    from planner.fleets.deployment import Deployment, Pool
    from planner.sglang.resolver import resolve
    from tuner.engines.build import LiveSettings
    from tuner.fleet_engines.live_fleet import TypedServer
    from tuner.launch_files.deployment_verification import typed_config
    from tuner.launch_files.trust import trusted_start

    question = _question(claim, bundle)
    typed, pools = {}, []
    for pool in claim.written.pools:
        start = trusted_start(claim.claims[pool.role], allow_env=bundle.allow_env, model_path=bundle.model_path)
        confirm_start(claim.claims[pool.role], start, bundle.engine, yes=bundle.yes)
        typed[pool.role] = TypedServer(words=start.words, environment=start.environment)
        config = typed_config(claim.claims[pool.role])
        machine = server_context(question, config).machine
        resolved = resolve(config, question.arch, machine, question.version).config
        pools.append(Pool(role=pool.role, servers=pool.servers, config=resolved))
    settings = LiveSettings(
        model_path=bundle.model_path or claim.first.model_path, trials=where / "trials", point_s=bundle.point_s,
        seed=bundle.seed, extra_flags=_device_of(claim),
    )  # fmt: skip
    deployment = Deployment(pools=tuple(pools))
    engine = _engine(bundle, question, settings, where)
    return partial(engine.launch_fleet, deployment, 0, typed), engine.close


def _engine(bundle: FleetVerification, question: PlanQuestion, live: LiveSettings, where: Path) -> LiveFleetEngine:
    """Return what starts the deployment's processes. Raises InputError for what could not."""
    from hwprobe.errors import InputError
    from planner.fleets.deployed import server_context
    from tuner.fleet_engines.emulated_fleet import emulated_fleet_engine
    from tuner.fleet_engines.local_fleet import local_fleet_engine

    if bundle.engine is EngineName.EMULATED:
        return emulated_fleet_engine(where, question.hardware, partial(server_context, question), live, bundle.world)
    python = shutil.which(bundle.python)
    if python is None:
        raise InputError(f"--python: no program '{bundle.python}' here that could be started")
    # started elsewhere, so that nothing beside the files is imported
    return local_fleet_engine(question, live, str(Path(python).absolute()), cwd=where)


def _device_of(claim: DeploymentClaim) -> tuple[str, ...]:
    """Return the flags that say a deployment runs without GPUs, as its servers' commands do."""
    from tuner.fleet_engines.local_fleet import on_cpu

    return ("--device", "cpu") if on_cpu(claim.first.line.words) else ()


def _question(claim: DeploymentClaim, bundle: FleetVerification) -> PlanQuestion:
    """Return the question that the bundle answers, on the machine that was named, else on its own."""
    from hwprobe.errors import InputError
    from hwprobe.profile import hardware_hash
    from models.engine.profile import load_engine_profile
    from planner.inputs import read_hardware, read_model
    from planner.plans.make import PlanQuestion

    first = claim.first
    record = first.record
    machine = read_hardware(bundle.hardware or str(first.hardware or record.hardware))
    arch = read_model(bundle.model)
    if arch.name != record.model:
        raise InputError(f"'{bundle.folder}' is for {record.model}, not {arch.name}; name its config.json with --model")
    if record.hardware_hash and hardware_hash(machine) != record.hardware_hash:
        typer.echo(f"note: the figures were recorded for another profile of {record.hardware}", err=True)
    return PlanQuestion(
        hardware=machine, arch=arch, version=first.version, isl=record.isl, osl=record.osl,
        range_ratio=record.range_ratio, concurrency=max(point.concurrency for point in record.points),
        engine=load_engine_profile(bundle.profile) if bundle.profile else None,
    ).checked()  # fmt: skip
