"""What `sgtune tune` is asked, with every mistake refused before anything starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.files import content_hash
from hwprobe.profile import hardware_hash
from models.traffic.traced_workload import TracedLoad
from models.workload import Workload
from planner.plans.make import PlanQuestion
from planner.sglang.arguments import read_arguments
from planner.sglang.secret_flags import without_secrets
from tuner.choices import SIMULATED_ENGINES, EngineName, Fidelity, Objective, SamplerName, ServersChoice
from tuner.engines.build import check_emulator
from tuner.engines.on_nodes import check_on_nodes
from tuner.engines.world import World
from tuner.evidence.trial import Manifest
from tuner.search.objective import Goal
from tuner.search.space_file import SpaceFile
from tuner.slices.records import check_objective, slice_for

MOST_PARALLEL = 64
# Under a trace: what is asked for is the trace's own, so rates and users are no objective.
TRACE_OBJECTIVES = (Objective.GOODPUT, Objective.TPOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneQuestion:
    """The question of `sgtune tune`, read from the command line."""

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
    server_flags: tuple[str, ...] = ()
    point_s: float = 10.0
    smoke: str | None = None
    confirm: int = 0
    space: SpaceFile | None = None
    fidelity: Fidelity = Fidelity.WHOLE
    cost_per_gpu_hour: float | None = None
    parallel: int | None = None
    cluster: str | None = None
    servers: ServersChoice | None = None
    traffic: TracedLoad | None = None

    @property
    def model_path(self) -> str:
        """What launches serve."""
        return self.plan.served_path

    @property
    def goal(self) -> Goal:
        """The objective with its figures."""
        plan = self.plan
        of_rate = self.traffic is None or self.objective is Objective.GOODPUT
        return Goal(
            objective=self.objective, slos=plan.slos, min_user_tok_s=plan.min_user_tok_s,
            request_rate=plan.request_rate if of_rate else None, cost_per_gpu_hour=self.cost_per_gpu_hour,
        )  # fmt: skip

    def workload(self, clients: int) -> Workload:
        """Return the load of a launch with so many requests in flight: clients in a closed loop, or a trace's."""
        return self.plan.workload(clients) if self.traffic is None else self.traffic.workload(clients)

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
        self._check_parallel()
        self._check_servers()
        self._check_objective()
        self.plan.checked()
        self._check_engine()
        if self.fidelity is Fidelity.SLICE:
            check_objective(self.objective)
            slice_for(self.plan.arch)
        return self

    def _check_parallel(self) -> None:
        """Raise InputError for launches side by side that this machine cannot hold, or slices beside them."""
        slots = 1 if self.parallel is None else self.parallel
        if not 1 <= slots <= MOST_PARALLEL:
            raise InputError(f"--parallel is {slots}; it must be between 1 and {MOST_PARALLEL}")
        if self.cluster is not None:
            check_on_nodes(self.engine)
        if slots > 1 and self.engine not in SIMULATED_ENGINES and self.cluster is None:
            raise InputError(
                f"--parallel {slots} with --engine {self.engine}: every launch takes all GPUs of this machine; "
                "name other machines with --cluster, or leave --parallel out"
            )
        if (slots > 1 or self.cluster is not None) and self.fidelity is Fidelity.SLICE:
            raise InputError("--fidelity slice tries one configuration at a time: leave --parallel and --cluster out")

    def _check_servers(self) -> None:
        """Raise InputError for what deployments are not tuned with."""
        if self.servers is None:
            return
        if self.engine is EngineName.DOCKER:
            raise InputError(
                f"--servers {self.servers} starts servers and a router as processes of this machine, not in "
                "containers: use --engine local with an interpreter that has SGLang (--python)"
            )
        refused = {
            "--traffic": self.traffic is not None,
            f"--objective {self.objective}": self.objective is not Objective.OUTPUT_TOK_S,
            "--cluster": self.cluster is not None,
            f"--parallel {self.parallel}": (self.parallel or 1) > 1,
            "--fidelity slice": self.fidelity is Fidelity.SLICE,
            "--space": self.space is not None,
            "--smoke": self.smoke is not None and self.engine is not EngineName.LOCAL,
        }
        others = [option for option, is_given in refused.items() if is_given]
        if others:
            raise InputError(
                f"--servers {self.servers} tunes output_tok_s with whole deployments, one after the other, on this "
                f"machine: leave {others[0]} out"
            )

    def _check_objective(self) -> None:
        """Raise InputError where objective and load do not go together."""
        if self.traffic is not None:
            self._check_traffic(self.traffic)
        self.goal.checked()
        if self.traffic is not None:
            return
        loads = {"--concurrency": self.plan.concurrency, "--request-rate": self.plan.request_rate}
        needed_flag = {Objective.USERS: None, Objective.GOODPUT: "--request-rate"}.get(self.objective, "--concurrency")
        for flag, value in loads.items():
            if flag == needed_flag and value is None:
                raise InputError(f"--objective {self.objective} needs {flag}")
            if flag != needed_flag and value is not None:
                raise InputError(f"{flag} does not go with --objective {self.objective}")

    def _check_traffic(self, traffic: TracedLoad) -> None:
        """Raise InputError for what no trace answers, or no server of this model takes."""
        if self.objective not in TRACE_OBJECTIVES:
            raise InputError(
                f"--objective {self.objective} does not go with --traffic, which says how much is asked for: choose "
                f"one of {', '.join(TRACE_OBJECTIVES)}"
            )
        if self.fidelity is Fidelity.SLICE:
            raise InputError("--fidelity slice measures a closed loop of clients: leave it out under --traffic")
        longest = traffic.workload(1).longest_request
        if longest > self.plan.arch.max_position_embeddings:
            raise InputError(
                f"'{traffic.mark.file}' has a request of {longest:,} tokens; the model's context is "
                f"{self.plan.arch.max_position_embeddings:,}"
            )

    def _check_machines(self) -> None:
        """Raise InputError for servers on machines that nobody named."""
        in_a_world = self.servers is not None and self.engine is EngineName.EMULATED
        if self.plan.hardware.nodes > 1 and self.servers is not None and not in_a_world:
            raise InputError(
                f"--servers {self.servers} with --engine {self.engine} starts all servers on this machine; --hardware "
                f"{self.plan.hardware.name} is {self.plan.hardware.nodes} machines: name one of them, or use --engine "
                "simulated or emulated"
            )
        if self.plan.hardware.nodes > 1 and self.cluster is None and not in_a_world:
            raise InputError(
                f"--engine {self.engine} starts servers on this machine; --hardware {self.plan.hardware.name} is "
                f"{self.plan.hardware.nodes} machines: name their cluster with --cluster, or use --engine simulated"
            )

    def _check_engine(self) -> None:
        """Raise InputError for an engine that could not start, before anything is written."""
        if self.engine is EngineName.SIMULATED:
            if self.server_flags:
                raise InputError(
                    "SGLang flags (after `--`, or in --space) need a server: --engine emulated, local or docker"
                )
            return
        self._check_machines()
        if self.smoke is not None and not all(self.smoke.partition("=")):
            raise InputError(f"--smoke is '{self.smoke}'; write it as in --smoke 'The capital of France is=Paris'")
        if self.engine is EngineName.DOCKER and not self.image:
            raise InputError("--engine docker needs --image, as in --image lmsysorg/sglang:v0.5.23")
        if self.engine is EngineName.EMULATED:
            check_emulator()
        program = {EngineName.LOCAL: self.python, EngineName.DOCKER: "docker"}.get(self.engine)
        if self.cluster is not None:
            program = None  # the interpreter is that of the nodes
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
        machine = _plain(plan.hardware.name)
        if self.traffic is not None:
            mark = self.traffic.mark
            return f"{machine}-{_plain(Path(mark.file).stem)}-x{mark.rate_scale:g}"
        load = f"c{plan.concurrency}"
        if self.objective is Objective.USERS:
            load = f"u{plan.min_user_tok_s:g}"
        elif self.objective is Objective.GOODPUT:
            load = f"r{plan.request_rate:g}"
        fleet = "" if self.servers is None else f"-{self.servers}"
        return f"{machine}-{plan.isl}-{plan.osl}-{load}{fleet}"

    def manifest(self) -> Manifest:
        plan = self.plan
        return Manifest(
            hardware=plan.hardware.name,
            hardware_hash=hardware_hash(plan.hardware),
            world_hash=content_hash(self.world),
            belief_hash=content_hash((plan.context().engine, plan.acceptance, plan.context().sigma)),
            model=plan.arch.name,
            model_path=self.model_path,
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
            server_flags=tuple(without_secrets(self.server_flags)),
            space_hash=content_hash(self.space.choices) if self.space else "",
            fidelity=str(self.fidelity),
            request_rate=plan.request_rate,
            users=plan.users,
            min_user_tok_s=plan.min_user_tok_s,
            cost_per_gpu_hour=self.cost_per_gpu_hour,
            servers=None if self.servers is None else str(self.servers),
            traffic=None if self.traffic is None else self.traffic.mark,
        )

    def folder(self) -> Path:
        """Return the run folder: the named one, the latest of this question to resume, or the next free one."""
        if self.run is not None:
            return self.runs / self.run
        names = [self.base_name, *(f"{self.base_name}-{n}" for n in range(2, 1000))]
        existing = [name for name in names if (self.runs / name / "run.toml").exists()]
        if self.resume:
            return self.runs / (existing[-1] if existing else self.base_name)
        return self.runs / next(name for name in names if not (self.runs / name).exists())


def _plain(name: str) -> str:
    """Return a name as part of a folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
