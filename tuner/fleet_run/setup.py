"""From a question to a run over deployments that is ready to go: run folder and engine, new or resumed."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from hwprobe.errors import InputError
from planner.fleets.deployed import server_context
from planner.fleets.deployment import Deployment
from planner.fleets.worth_launching import best_copies, splits_in_two
from tuner.choices import EngineName, ServersChoice
from tuner.engines.build import LiveSettings, run_mark
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.trial import TrialRecord
from tuner.fleet_engines.emulated_fleet import emulated_fleet_engine
from tuner.fleet_engines.local_fleet import local_fleet_engine
from tuner.fleet_engines.simulated_fleet import SimulatedFleetEngine
from tuner.fleet_run.loop import FleetLoop, FleetReporter, read_alone
from tuner.run.engine_factory import smoke_of
from tuner.run.question import TuneQuestion
from tuner.run.setup import new_folder
from tuner.seam import FleetEngine


def open_fleet_loop(question: TuneQuestion, reporter: FleetReporter) -> FleetLoop:
    """Create or resume the run folder and return the loop. Raises InputError for what cannot be tuned."""
    checked(question)
    can_launch = partial(launchable, question.engine)
    baseline = best_copies(question.plan, can_launch)
    if baseline is None:
        raise InputError(f"nothing to tune: {question.plan.arch.name} does not fit {question.plan.hardware.name}")
    manifest = question.manifest()
    records: list[TrialRecord] = []
    if question.resume:
        folder, records, _ = RunFolder.resume(question.folder(), manifest)
    else:
        folder = new_folder(question, manifest)
    with ExitStack() as undo:  # whatever fails from here on lets go of the folder
        undo.callback(folder.release)
        loop = FleetLoop(
            question=question, engine=fleet_engine(question, folder), folder=folder, reporter=reporter,
            launchable=can_launch, baseline=baseline, records=records, measured_alone=read_alone(folder),
        )  # fmt: skip
        undo.pop_all()
    return loop


def checked(question: TuneQuestion) -> None:
    """Raise InputError for a question about deployments that has no meaning."""
    question.checked()
    if question.plan.concurrency is None:
        raise InputError(f"--servers {question.servers} needs --concurrency")
    if question.engine is EngineName.SIMULATED and question.world.server_factors:
        raise InputError("server_factors of a world slow single servers: they need --engine emulated")
    hardware = question.plan.hardware
    if question.servers is ServersChoice.PD and not splits_in_two(question.plan):
        raise InputError(
            f"--servers pd needs room for two servers that hold {question.plan.arch.name}: --hardware {hardware.name} "
            "has it for one"
        )


def launchable(engine: EngineName, deployment: Deployment) -> bool:
    """Say whether an engine can launch a deployment: in virtual time any, as processes servers of one node."""
    return engine is EngineName.SIMULATED or all(pool.config.nnodes == 1 for pool in deployment.pools)


def fleet_engine(question: TuneQuestion, folder: RunFolder) -> FleetEngine:
    """Build the engine of --engine for deployments. Raises InputError where it could start none."""
    belief_of = partial(server_context, question.plan)
    if question.engine is EngineName.SIMULATED:
        return SimulatedFleetEngine(world=question.world, belief_of=belief_of, seed=question.seed)
    plan = question.plan
    live = LiveSettings(
        model_path=plan.served_path, trials=folder.path / "trials", point_s=question.point_s, seed=question.seed,
        extra_flags=question.server_flags, smoke=smoke_of(question.smoke), slos=plan.slos, run=run_mark(folder.path),
    )  # fmt: skip
    if question.engine is EngineName.LOCAL:
        return local_fleet_engine(plan, live, question.python)
    return emulated_fleet_engine(folder.path.absolute(), plan.hardware, belief_of, live, question.world)
