"""From a tuning question to a Loop ready to run: plan first, then space, seeds, run folder and engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprobe.errors import InputError
from models.workload import Slo, Workload
from planner.plans.capacity import MOST_CLIENTS
from planner.plans.make import Plan, make_plan
from planner.plans.seeds import recipe, sglang_default, spread_seeds
from planner.plans.space import default_space
from tuner.choices import SIMULATED_ENGINES, Fidelity, Objective, SamplerName
from tuner.cluster.engine import ClusterEngine
from tuner.engines.live import LiveEngine
from tuner.evidence.flight import FlightLog
from tuner.evidence.run_folder import FolderTaken, RunFolder
from tuner.evidence.standings import BASELINE, RECIPE
from tuner.evidence.trial import Manifest, TrialRecord
from tuner.run.airspace import Airspace, ThreadAirspace, VirtualAirspace
from tuner.run.engine_factory import engine_of
from tuner.run.loop import Loop, Reporter, TuneTask
from tuner.run.question import TuneQuestion
from tuner.seam import Engine
from tuner.search.configurations import candidates_of
from tuner.search.optuna_study import Proposer, StudyIndex, require_sklearn
from tuner.search.space import TuningSpace, tuning_space
from tuner.slices.records import SliceFile, slice_for, sliced_engine

if TYPE_CHECKING:
    from tuner.slices.screening import SliceScreening

SPREAD_SEEDS = 6
# Simultaneous starts of one question that each find a name of their own.
MOST_STARTS = 100
# Where the load in flight is an answer, not a question, so many times what the model believes in is provided for.
HEADROOM = 2.0
# The model-guided sampler spreads by itself; a few tell apart what would else be blamed together (MTP, EP, DP).
SPREAD_SEEDS_GUIDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A planned tuning run that has touched no file yet."""

    question: TuneQuestion
    plan: Plan
    space: TuningSpace
    seeds: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def workload(self) -> Workload:
        """What a launch is measured with: an open loop is expected to hold what the plan says, not the headroom."""
        if self.question.objective is Objective.GOODPUT:
            return self.question.workload(self.plan.concurrency)
        return self.space.workload


def prepare(question: TuneQuestion) -> Prepared:
    """Plan the question and choose space and seeds. Raises InputError when nothing fits the machine."""
    question.checked()
    plan = make_plan(question.plan)
    if plan.best is None:
        short = f" (short of {plan.shortage_gib:.1f} GiB per GPU)" if plan.shortage_gib else ""
        more = f"; {plan.node_answer}" if plan.node_answer else ""
        raise InputError(
            f"nothing to tune: {plan.question.arch.name} does not fit {question.plan.hardware.name}{short}{more}"
        )
    context = plan.context
    workload = question.workload(_most_clients(question, plan))
    space = default_space(context.machine, context.version, arch=context.arch, mtp=question.plan.mtp)
    unfit = {item.config.layout for item in plan.found.rejected if not item.config.speculative}
    fitting = {layout.layout: layout for layout in space.layouts if layout.layout not in unfit}
    study_space = tuning_space(space, fitting, context, workload, _latency_limits(question))
    if question.space is not None:
        study_space = question.space.narrow(study_space)
        candidates_of(study_space)  # raises where nothing is left
    count = SPREAD_SEEDS_GUIDED if question.sampler is SamplerName.MODEL else SPREAD_SEEDS
    seeds = _seeds(plan, study_space, count)
    if question.fidelity is Fidelity.SLICE:  # only the baseline needs no slice to deserve a launch
        seeds = seeds[:1]
    return Prepared(question=question, plan=plan, space=study_space, seeds=tuple(seeds))


def _most_clients(question: TuneQuestion, plan: Plan) -> int:
    """Return the clients the space is made for: those asked for, or room beyond what the model believes in."""
    if question.objective not in (Objective.USERS, Objective.GOODPUT):
        return plan.concurrency
    return max(2, min(question.plan.users or MOST_CLIENTS, math.ceil(HEADROOM * plan.concurrency)))


def _latency_limits(question: TuneQuestion) -> tuple[Slo, ...]:
    """Return the limits that fewer running requests may keep: users and open loops do not wait in line for them."""
    in_line = question.traffic is None and question.objective not in (Objective.USERS, Objective.GOODPUT)
    return question.plan.slos if in_line else ()


def _seeds(plan: Plan, space: TuningSpace, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The default (the baseline of every claim), the recipe, then margin and spread; none twice.

    A narrowed space drops all but the baseline that lie outside.
    """
    machine = plan.context.machine
    seeds: list[tuple[str, dict[str, Any]]] = []
    for source, layout in ((BASELINE, sglang_default(machine)), (RECIPE, recipe(machine))):
        if layout.layout in space.layouts:
            seeds.append((source, space.default_params(layout)))
    spread = spread_seeds(plan.found.candidates, machine.memory_gib, count)
    seeds += [("seed", space.params_of(candidate.config)) for candidate in spread]
    unique: list[tuple[str, dict[str, Any]]] = []
    for source, params in seeds:
        inside = all(value in space.choices[name] for name, value in params.items())
        if not inside and source != BASELINE:
            continue
        if params not in [listed for _, listed in unique]:
            unique.append((source, params))
    return unique


def open_loop(prepared: Prepared, reporter: Reporter) -> tuple[Loop, bool]:
    """Create or resume the run folder and return the loop, and whether a torn record was cut off."""
    question, plan = prepared.question, prepared.plan
    manifest = question.manifest()
    if question.resume:
        folder, records, torn = RunFolder.resume(question.folder(), manifest)
    else:
        folder, records, torn = new_folder(question, manifest), [], False
    with ExitStack() as undo:  # whatever fails from here on lets go of the folder
        undo.callback(folder.release)
        proposer = Proposer(sampler=question.sampler, seed=question.seed, goal=question.goal)
        index = StudyIndex(folder.study_file, prepared.space, records, proposer)
        engine = engine_of(question, plan.context, folder.path, records)
        undo.pop_all()
    task = TuneTask(
        context=plan.context,
        workload=prepared.workload,
        goal=question.goal,
        model_path=question.model_path,
        space=prepared.space,
        seeds=prepared.seeds,
        trials=question.trials,
        budget_s=question.budget_s,
        confirm=question.confirm,
        simulated=question.engine in SIMULATED_ENGINES,
    )
    screen = _screen(prepared, engine, folder) if question.fidelity is Fidelity.SLICE else None
    log = FlightLog(folder.path)
    return Loop(
        task=task, engine=engine, folder=folder, index=index, reporter=reporter, records=records, screen=screen,
        log=log, airspace=_airspace(question, engine, log, records),
    ), torn  # fmt: skip


def _airspace(question: TuneQuestion, engine: Engine, log: FlightLog, records: Sequence[TrialRecord]) -> Airspace:
    """Return what carries the launches: threads for real servers side by side, else one after the other."""
    fitting = len(engine.pool.nodes) // question.plan.hardware.nodes if isinstance(engine, ClusterEngine) else 1
    slots = max(1, fitting) if question.parallel is None else question.parallel
    if isinstance(engine, ClusterEngine) or (slots > 1 and isinstance(engine, LiveEngine)):
        return ThreadAirspace(slots, engine.abort)
    return VirtualAirspace(slots, log.flights, records)


def new_folder(question: TuneQuestion, manifest: Manifest) -> RunFolder:
    """Make a run folder; where its name was not asked for, another start may take the next one before us."""
    for _ in range(MOST_STARTS):
        try:
            return RunFolder.create(question.folder(), manifest, question.plan.hardware)
        except FolderTaken:
            if question.run is not None:
                raise
    return RunFolder.create(question.folder(), manifest, question.plan.hardware)


def _screen(prepared: Prepared, engine: Engine, folder: RunFolder) -> SliceScreening:
    """Return what tries slices first, with those of earlier sessions."""
    require_sklearn("--fidelity slice")
    from tuner.slices.screening import SliceScreening  # scikit-learn is needed, and paid for, only here

    arch = slice_for(prepared.plan.context.arch)
    return SliceScreening(
        space=prepared.space, arch=arch, goal=prepared.question.goal,
        engine=sliced_engine(engine, arch, folder.path / "slices"), file=SliceFile(folder.path / "slices.jsonl"),
    )  # fmt: skip
