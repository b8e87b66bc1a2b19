"""`sgtune verify`: boot a launch file's own command and see whether it still does what the file says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwprobe.holds import scratch_folder
from tuner.choices import SIMULATED, EngineName
from tuner.cli.common import completion, options
from tuner.cli.common.consent import DISAGREES, confirm_start
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwprobe.profile import HardwareProfile
    from models.serving.estimate import Context
    from tuner.cluster.engine import ClusterEngine
    from tuner.engines.live import LiveEngine
    from tuner.engines.runners import Runner
    from tuner.engines.world import World
    from tuner.launch_files.trust import Start
    from tuner.launch_files.verification import Claim, Verified
    from tuner.seam import LaunchOrder

EXAMPLE = "Example: sgtune verify launch/ --engine local"
WORDS = {
    "agrees": "PASS: matches recorded performance",
    "differs": "FAIL: differs from recorded performance",
    "inconclusive": "INCONCLUSIVE: a measurement was disturbed, which tells neither; verify again on a quiet machine",
}

VerifyEngine = Annotated[
    EngineName,
    typer.Option("--engine", help="What runs the command: local, docker, or emulated (to try it without GPUs)."),
]
VerifyHardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        autocompletion=completion.hardware,
        help="Catalogue name or hardware.json; default: the bundle's, else the file's.",
    ),
]
ServedPath = Annotated[
    str | None,
    typer.Option("--model-path", help="The model to serve, in the file's place; containers see no other folder."),
]
AllowEnv = Annotated[
    list[str] | None,
    typer.Option("--allow-env", help="A name of the file's environment to take, repeatable; most are left out."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Start it without being asked.")]
VerifyTraffic = Annotated[
    Path | None, typer.Option("--traffic", help="The file of requests that the launch file was tuned under.")
]
Logs = Annotated[Path | None, typer.Option("--logs", help="Keep the server's log in this folder.")]


def verify(
    path: Annotated[Path, typer.Argument(help="Bundle folder or launch file of sgtune export.", show_default=False)],
    server_flags: options.ServerFlags = None,
    engine: VerifyEngine = EngineName.LOCAL,
    python: options.Python = "python3",
    image: options.Image = None,
    hardware: VerifyHardware = None,
    model: options.Model = None,
    profile: options.Profile = None,
    world: options.WorldFile = None,
    cluster: options.Cluster = None,
    point_time: options.PointTime = "10s",
    traffic: VerifyTraffic = None,
    map: options.TrafficMap = None,
    seed: options.Seed = 0,
    logs: Logs = None,
    model_path: ServedPath = None,
    allow_env: AllowEnv = None,
    yes: Yes = False,
    json: options.Json = False,
) -> None:
    """Start exactly the command of a launch file, measure the recorded points again, and compare.

    Exit 1 where a figure differs, or where none could be had that settles it.

    It shows the command first. Of the file's environment, image and paths it takes SGLang's own and those granted
    here, no others.
    """
    from functools import partial

    from planner.launch_files.targets import Target
    from tuner.cli.commands.tune import parse_duration_s
    from tuner.cli.deployments.verify_fleet import FleetVerification, verify_fleet
    from tuner.cli.under_traffic.tune_traffic import window_of_claim
    from tuner.engines.build import LiveSettings, live_engine
    from tuner.engines.image_check import pull_if_missing
    from tuner.engines.on_nodes import NodeSetup, check_on_nodes, cluster_engine
    from tuner.engines.runners import DockerRunner
    from tuner.engines.world import load_world
    from tuner.launch_files.deployment_verification import is_deployment
    from tuner.launch_files.trust import trusted_start
    from tuner.launch_files.verification import read_claim
    from tuner.seam import LaunchOrder

    point_s = parse_duration_s(point_time, "--point-time")
    if is_deployment(path):
        fleet = FleetVerification(
            folder=path, engine=engine, world=load_world(world), hardware=hardware, model=model, profile=profile,
            point_s=point_s, seed=seed, logs=logs, model_path=model_path, allow_env=tuple(allow_env or ()),
            python=python, yes=yes,
            refused={"--cluster": cluster, "SGLang flags after `--`": server_flags, "--traffic": traffic},
        )  # fmt: skip
        _end(verify_fleet(fleet), json=json)
        return
    claim = read_claim(path, Target.DOCKER if engine is EngineName.DOCKER else Target.BASH)
    claim = replace(claim, traffic=window_of_claim(claim, traffic, map))
    truth = load_world(world)
    start = trusted_start(claim, allow_env=tuple(allow_env or ()), model_path=model_path)
    start = replace(start, words=(*start.words, *(server_flags or ())))
    with scratch_folder("verify") as temporary:
        where = (logs or temporary).absolute()
        settings = LiveSettings(model_path=start.model_path, trials=where / "trials", point_s=point_s, seed=seed)
        machine, context = _machine(claim, hardware, model, profile, where)
        runner: Runner | None = None
        begin: Callable[[], LiveEngine | ClusterEngine]
        if cluster is not None:
            setup = NodeSetup(
                hardware=machine, context=context, engine=engine, world=truth, live=settings, python=python
            )
            check_on_nodes(engine)
            begin = partial(cluster_engine, cluster, setup, where)
        else:
            _check_alone(claim)
            runner = _runner(
                claim, start, context, engine=engine, python=python, image=image, world=truth, seed=seed, where=where,
                granted=model_path is not None,
            )  # fmt: skip
            begin = partial(live_engine, runner, context, settings)
        confirm_start(claim, start, engine, yes=yes)
        if isinstance(runner, DockerRunner):
            pull_if_missing(runner.docker, runner.image)
        order = LaunchOrder(config=claim.config(context), number=0, typed=start.words, environment=start.environment)
        verified = _verified(claim, begin, order)
    _end(verified, json=json)


def _end(verified: Verified, *, json: bool) -> None:
    """Show the answer. Exit 1 where it does not agree with the file."""
    if json:
        print_json(verified.document())
    else:
        _show(verified)
    if not verified.agrees:
        raise typer.Exit(DISAGREES)


def _check_alone(claim: Claim) -> None:
    """Raise InputError for a server over several nodes where no cluster is named."""
    from hwprobe.errors import InputError

    if claim.record.nnodes > 1:
        raise InputError(
            f"'{claim.file}' starts {claim.record.nnodes} nodes: name their Ray cluster with --cluster auto, or start "
            "it and measure with sgtune bench --url"
        )


def _machine(
    claim: Claim, hardware: str | None, model: Path | None, profile: Path | None, where: Path
) -> tuple[HardwareProfile, Context]:
    """Return what the command runs on, and write the machine where the emulated server finds it."""
    from hwprobe.errors import InputError
    from hwprobe.files import encode_json, write_atomic
    from hwprobe.profile import hardware_hash
    from models.engine.profile import load_engine_profile
    from planner.inputs import read_hardware, read_model
    from planner.plans.make import PlanQuestion

    record = claim.record
    machine = read_hardware(hardware or str(claim.hardware or record.hardware))
    arch = read_model(model)
    if arch.name != record.model:
        raise InputError(f"'{claim.file}' is for {record.model}, not {arch.name}; name its config.json with --model")
    if record.hardware_hash and hardware_hash(machine) != record.hardware_hash:
        typer.echo(f"note: the figures were recorded for another profile of {record.hardware}", err=True)
    write_atomic(where / "hardware.json", encode_json(machine) + "\n")
    question = PlanQuestion(
        hardware=machine, arch=arch, version=claim.version, isl=record.isl, osl=record.osl,
        range_ratio=record.range_ratio, concurrency=max(point.concurrency for point in record.points),
        engine=load_engine_profile(profile) if profile else None,
    )  # fmt: skip
    return machine, question.checked().context()


def _runner(
    claim: Claim,
    start: Start,
    context: Context,
    *,
    engine: EngineName,
    python: str,
    image: str | None,
    world: World,
    seed: int,
    where: Path,
    granted: bool,
) -> Runner:
    """Return what starts the command. Raises InputError for an engine that could not."""
    import shutil

    from hwprobe.errors import InputError
    from tuner.engines.build import emulated_runner
    from tuner.engines.runners import DockerRunner, LocalRunner, hub_folder
    from tuner.launch_files.trust import mountable, trusted_image, trusted_options

    if engine is EngineName.SIMULATED:
        raise InputError("--engine simulated starts no server; verify with local, docker or emulated")
    if engine is EngineName.EMULATED:
        return emulated_runner(where, context, world, seed)
    program = python if engine is EngineName.LOCAL else "docker"
    if shutil.which(program) is None:
        flag = "--python" if engine is EngineName.LOCAL else "--engine docker"
        raise InputError(f"{flag}: no program '{program}' here that could be started")
    if engine is EngineName.LOCAL:  # started elsewhere, so that nothing beside the file is imported
        return LocalRunner(python=str(Path(str(shutil.which(program))).absolute()), cwd=where)
    return DockerRunner(
        image=trusted_image(claim, image), model_path=start.model_path, cache=None,
        mounted=mountable(start.model_path, granted=granted), hub=hub_folder(), options=trusted_options(claim)[0],
    )  # fmt: skip


def _verified(claim: Claim, begin: Callable[[], LiveEngine | ClusterEngine], order: LaunchOrder) -> Verified:
    from tuner.launch_files.verification import verify

    screen = console(stderr=True)
    engine = begin()
    screen.print(f"starting {claim.file} on the {engine.name} engine", markup=False)
    try:
        return verify(claim, engine, order, lambda text: screen.print(text, markup=False))
    finally:
        engine.close()


def _show(verified: Verified) -> None:
    from rich.table import Table

    record = verified.claim.record
    origin = SIMULATED if record.simulated else "measured"
    basis = f"{origin} on {record.engine}" if record.basis == "measured" else "predicted"
    stamp = f"{SIMULATED} " if verified.simulated else ""
    lengths = str(record.traffic) if record.traffic else f"{record.isl} in / {record.osl} out"
    table = Table(title=f"{stamp}{verified.deployment or verified.claim.file}: {lengths}", title_justify="left")
    for name in (
        "load",
        f"recorded tok/s ({basis})",
        "interval",
        "now",
        "interval now",
        "change",
        "smallest detectable change",
        "",
    ):
        table.add_column(name, justify="left" if name == "" else "right")
    for point in verified.points:
        low, high = point.recorded.interval
        now_low, now_high = point.measured.output_tok_s_interval
        table.add_row(
            point.recorded.load,
            f"{point.recorded.output_tok_s:,.1f}",
            f"{low:,.1f} to {high:,.1f}",
            f"{point.measured.output_tok_s:,.1f}",
            f"{now_low:,.1f} to {now_high:,.1f}",
            f"{point.change:+.1%}",
            f"{point.resolves:.1%}",
            "agrees" if point.agrees else point.why,
        )
    screen = console()
    screen.print(table)
    screen.print(WORDS[verified.agreement])
