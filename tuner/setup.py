"""From a tuning question to a Loop ready to run: plan first, then space, seeds, run folder and engine."""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import content_hash
from hwprobe.profile import hardware_hash
from models.workload import Slo, Workload
from planner.arguments import read_arguments
from planner.capacity import MOST_CLIENTS
from planner.launch import DEFAULT_MODEL_PATH
from planner.plan import Plan, PlanQuestion, make_plan
from planner.seeds import recipe, sglang_default, spread_seeds
from planner.space import default_space
from tuner.candidates import candidates_of
from tuner.choices import EngineName, Fidelity, Objective, SamplerName
from tuner.confirm import BASELINE
from tuner.engines.choose import check_emulator, engine_of
from tuner.engines.seam import Engine
from tuner.fidelity import Screen
from tuner.goal import Goal
from tuner.loop import Loop, Reporter, Task
from tuner.record import Manifest
from tuner.slice_trials import SliceFile, check_objective, slice_for, sliced_engine
from tuner.space_file import SpaceFile
from tuner.store import RunFolder
from tuner.study import StudyIndex
from tuner.tuning_space import TuningSpace, tuning_space
from tuner.world import World

SPREAD_SEEDS = 6
# Where the load in flight is an answer, not a question, so many times what the model believes in is provided for.
HEADROOM = 2.0
# The model-guided sampler spreads by itself; a few tell apart what would else be blamed together (MTP, EP, DP).
SPREAD_SEEDS_GUIDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneQuestion:
    """What is asked of `sgtune tune`, read from the command line."""

    plan: PlanQuestion
    objective: Objective
    engine: EngineName
    world: World
    trials: int
    budget_s: float
    seed: int
    sampler: SamplerName
    run: str | None
    runs: Path
    resume: bool
    python: str = "python3"
    image: str | None = None
    model_path: str = DEFAULT_MODEL_PATH
    server_flags: tuple[str, ...] = ()
    point_s: float = 10.0
    smoke: str | None = None
    confirm: int = 0
    space: SpaceFile | None = None
    fidelity: Fidelity = Fidelity.WHOLE
    cost_per_gpu_hour: float | None = None

    @property
    def goal(self) -> Goal:
        """The objective with its figures."""
        plan = self.plan
        return Goal(
            objective=self.objective, slos=plan.slos, min_user_tok_s=plan.min_user_tok_s,
            request_rate=plan.request_rate, cost_per_gpu_hour=self.cost_per_gpu_hour,
        )  # fmt: skip

    def checked(self) -> TuneQuestion:
        """Raise InputError for a question that has no meaning; return the question otherwise."""
        if not 1 <= self.trials <= 10_000:
            raise InputError(f"--trials is {self.trials}; it must be between 1 and 10000")
        if not 0 <= self.confirm <= 100:
            raise InputError(f"--confirm is {self.confirm}; it must be between 0 (off) and 100")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed is {self.seed}; it must be between 0 and {2**31 - 1}")
        if self.run is not None and (not self.run or self.run in (".", "..") or Path(self.run).name != self.run):
            raise InputError(f"--run is '{self.run}'; it must be a plain folder name (its place is --runs)")
        self._check_objective()
        self.plan.checked()
        self._check_engine()
        if self.fidelity is Fidelity.SLICE:
            check_objective(self.objective)
            slice_for(self.plan.arch)
        return self

    def _check_objective(self) -> None:
        """Raise InputError where objective and load do not go together."""
        self.goal.checked()
        loads = {"--concurrency": self.plan.concurrency, "--request-rate": self.plan.request_rate}
        wanted = {Objective.USERS: None, Objective.GOODPUT: "--request-rate"}.get(self.objective, "--concurrency")
        for flag, value in loads.items():
            if flag == wanted and value is None:
                raise InputError(f"--objective {self.objective} needs {flag}")
            if flag != wanted and value is not None:
                raise InputError(f"{flag} does not go with --objective {self.objective}")

    def _check_engine(self) -> None:
        """Raise InputError for an engine that could not start, before anything is written."""
        if self.engine is EngineName.SIMULATED:
            if self.server_flags:
                raise InputError(
                    "SGLang flags (after `--`, or in --space) need a server: --engine emulated, local or docker"
                )
            return
        if self.plan.hardware.nodes > 1:
            raise InputError(
                f"--engine {self.engine} starts servers on this machine; --hardware {self.plan.hardware.name} is "
                f"{self.plan.hardware.nodes} machines: plan them, or tune one with --engine simulated"
            )
        if self.smoke is not None and not all(self.smoke.partition("=")):
            raise InputError(f"--smoke is '{self.smoke}'; write it as in --smoke 'The capital of France is=Paris'")
        if self.engine is EngineName.DOCKER and not self.image:
            raise InputError("--engine docker needs --image, as in --image lmsysorg/sglang:v0.5.23")
        if self.engine is EngineName.EMULATED:
            check_emulator()
        program = {EngineName.LOCAL: self.python, EngineName.DOCKER: "docker"}.get(self.engine)
        if program is not None and shutil.which(program) is None:
            flag = "--python" if self.engine is EngineName.LOCAL else "--engine docker"
            raise InputError(f"{flag}: no program '{program}' here that could be started")
        faults = [fault for fault in read_arguments(self.server_flags, self.plan.version).faults if fault.refused]
        if faults:
            raise InputError(
                f"SGLang {self.plan.version} refuses a flag after `--`: {faults[0].message}; {faults[0].fix}"
            )

    @property
    def base_name(self) -> str:
        plan = self.plan
        machine = "".join(c if c.isalnum() or c in "-_." else "-" for c in plan.hardware.name)
        load = f"c{plan.concurrency}"
        if self.objective is Objective.USERS:
            load = f"u{plan.min_user_tok_s:g}"
        elif self.objective is Objective.GOODPUT:
            load = f"r{plan.request_rate:g}"
        return f"{machine}-{plan.isl}-{plan.osl}-{load}"

    def manifest(self) -> Manifest:
        plan = self.plan
        return Manifest(
            hardware=plan.hardware.name,
            hardware_hash=hardware_hash(plan.hardware),
            world_hash=content_hash(self.world),
            belief_hash=content_hash((plan.context().engine, plan.acceptance, plan.context().sigma)),
            model=plan.arch.name,
            sglang_version=str(plan.version),
            isl=plan.isl,
            osl=plan.osl,
            range_ratio=plan.range_ratio,
            concurrency=0 if plan.concurrency is None else plan.concurrency,
            slo=tuple(str(slo) for slo in plan.slos),
            objective=self.objective,
            engine=str(self.engine),
            world=self.world.name,
            seed=self.seed,
            sampler=str(self.sampler),
            mtp=plan.mtp,
            server_flags=self.server_flags,
            space_hash=content_hash(self.space.choices) if self.space else "",
            fidelity=str(self.fidelity),
            request_rate=plan.request_rate,
            users=plan.users,
            min_user_tok_s=plan.min_user_tok_s,
            cost_per_gpu_hour=self.cost_per_gpu_hour,
        )

    def folder(self) -> Path:
        """Return the run folder: the named one, the latest of this question to resume, or the next free one."""
        if self.run is not None:
            return self.runs / self.run
        taken = [self.base_name, *(f"{self.base_name}-{n}" for n in range(2, 1000))]
        existing = [name for name in taken if (self.runs / name / "run.toml").exists()]
        if self.resume:
            return self.runs / (existing[-1] if existing else self.base_name)
        return self.runs / next(name for name in taken if not (self.runs / name).exists())


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
            return self.question.plan.workload(self.plan.concurrency)
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
    workload = question.plan.workload(_most_clients(question, plan))
    space = default_space(context.machine, context.version, mtp=question.plan.mtp)
    unfit = {item.config.layout for item in plan.found.rejected if not item.config.speculative}
    kept = {layout.layout: layout for layout in space.layouts if layout.layout not in unfit}
    study_space = tuning_space(space, kept, context, workload, _latency_limits(question))
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
    return () if question.objective in (Objective.USERS, Objective.GOODPUT) else question.plan.slos


def _seeds(plan: Plan, space: TuningSpace, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The default (the baseline of every claim), the recipe, then margin and spread; none twice.

    A narrowed space drops all but the baseline that lie outside.
    """
    machine = plan.context.machine
    wanted: list[tuple[str, dict[str, Any]]] = []
    for source, layout in ((BASELINE, sglang_default(machine)), ("recipe", recipe(machine))):
        if layout.layout in space.layouts:
            wanted.append((source, space.default_params(layout)))
    chosen = spread_seeds(plan.found.candidates, machine.memory_gib, count)
    wanted += [("seed", space.params_of(candidate.config)) for candidate in chosen]
    unique: list[tuple[str, dict[str, Any]]] = []
    for source, params in wanted:
        inside = all(value in space.choices[name] for name, value in params.items())
        if not inside and source != BASELINE:
            continue
        if params not in [known for _, known in unique]:
            unique.append((source, params))
    return unique


def open_loop(prepared: Prepared, reporter: Reporter) -> tuple[Loop, bool]:
    """Create or resume the run folder and return the loop, and whether a torn record was cut off."""
    question, plan = prepared.question, prepared.plan
    path, manifest = question.folder(), question.manifest()
    if question.resume:
        folder, records, torn = RunFolder.resume(path, manifest)
    else:
        folder, records, torn = RunFolder.create(path, manifest, question.plan.hardware), [], False
    with ExitStack() as undo:  # whatever fails from here on lets go of the folder
        undo.callback(folder.release)
        index = StudyIndex(
            folder.study_file, prepared.space, records, sampler=question.sampler, seed=question.seed,
            goal=question.goal,
        )  # fmt: skip
        engine = engine_of(question, plan.context, folder)
        undo.pop_all()
    task = Task(
        context=plan.context,
        workload=prepared.workload,
        goal=question.goal,
        space=prepared.space,
        seeds=prepared.seeds,
        trials=question.trials,
        budget_s=question.budget_s,
        confirm=question.confirm,
    )
    screen = _screen(prepared, engine, folder) if question.fidelity is Fidelity.SLICE else None
    return Loop(
        task=task, engine=engine, folder=folder, index=index, reporter=reporter, records=records, screen=screen
    ), torn


def _screen(prepared: Prepared, engine: Engine, folder: RunFolder) -> Screen:
    """Return what tries slices first, with those of earlier sessions."""
    arch = slice_for(prepared.plan.context.arch)
    return Screen(
        space=prepared.space, arch=arch, goal=prepared.question.goal,
        engine=sliced_engine(engine, arch, folder.path / "slices"), file=SliceFile(folder.path / "slices.jsonl"),
    )  # fmt: skip
