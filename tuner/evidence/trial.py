"""A run's evidence: the question it answers, and one record per trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import UNSET, UnsetType

from models.config import ServerConfig
from models.traffic.traced_workload import TrafficMark
from planner.fleets.deployment import Deployment, Role
from planner.plans.alternatives import DEFAULT, UNMODELLED
from tuner.choices import SIMULATED_ENGINES, Objective, ServersChoice
from tuner.seam import FailureKind, Measurement, Place


class TrialOutcome(StrEnum):
    """`ruled_out` was never launched: a rule, the ledger or the optimistic bound decided.

    `infeasible` is the configuration's fault; `failed` is the machine's, or an invalid measurement: samplers ignore it.
    """

    MEASURED = "measured"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    RULED_OUT = "ruled_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The question of a run. A run folder belongs to exactly one.

    The hashes cover every figure of the machine, the world, and the model's belief (engine profile,
    acceptance, expert skew). `model_path` is where the weights lay, which is no part of the question
    (runs of earlier versions do not say it).
    Under `traffic` `isl` is the mean of what is new in a prompt, and `request_rate` that of the window.
    """

    hardware: str
    hardware_hash: str
    model: str
    sglang_version: str
    isl: int
    osl: int
    range_ratio: float
    concurrency: int
    slo: tuple[str, ...]
    objective: Objective
    engine: str
    world: str
    world_hash: str
    belief_hash: str
    seed: int
    sampler: str
    mtp: bool
    server_flags: tuple[str, ...] = ()
    space_hash: str = ""
    fidelity: str = "whole"
    request_rate: float | None = None
    users: int | None = None
    min_user_tok_s: float | None = None
    cost_per_gpu_hour: float | None = None
    model_path: str = ""
    servers: str | None = None
    traffic: TrafficMark | None = None
    schema_version: int = 1

    @property
    def served_path(self) -> str:
        """What launches served: `model_path`, else the model's name."""
        return self.model_path or self.model

    @property
    def simulated(self) -> bool:
        """Whether the figures describe a world instead of a machine."""
        return self.engine in SIMULATED_ENGINES

    @property
    def load(self) -> str:
        """The load that decides, in words."""
        if self.traffic is not None:
            return str(self.traffic)
        if self.request_rate is not None:
            return f"{self.request_rate:g} requests/s"
        if self.min_user_tok_s is not None:
            return f"as many users as see {self.min_user_tok_s:g} tok/s each"
        return f"{self.concurrency:,} clients"

    @property
    def load_flags(self) -> list[str]:
        """The same as flags of `sgtune tune`."""
        if self.traffic is not None:
            mark = self.traffic
            words = ["--traffic", mark.file, "--window", f"{mark.length_s}s"]
            return words if mark.rate_scale == 1.0 else [*words, "--rate-scale", f"{mark.rate_scale:g}"]
        flags = {
            "--concurrency": self.concurrency or None,
            "--request-rate": self.request_rate,
            "--users": self.users,
            "--min-user-tok-s": self.min_user_tok_s,
            "--cost-per-gpu-hour": self.cost_per_gpu_hour,
        }
        return [word for flag, value in flags.items() if value is not None for word in (flag, f"{value:g}")]

    def differences(self, other: Manifest) -> list[str]:
        """Return one phrase per field in which another question differs."""
        return [
            f"{name} {getattr(self, name)!s} -> {getattr(other, name)!s}"
            for name in self.__slots__
            if name != "model_path" and getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial as evidence: the configuration and its source, the prediction, the measurements.

    `config` is resolved; `params` are the study's; `spent_s` is the engine time of this trial;
    `constraints` are <= 0 where feasible; `repeats` is the trial whose configuration was launched again. `points` are
    in order of load; `decided_at` is the load that decides (None: the last). `value` is the objective in its
    unit. `place` is where in a cluster it ran. `simulated` says that the figures describe a world, not a machine.
    Of a `deployment` `config` is one server of its last pool.
    """

    number: int
    source: str
    params: dict[str, Any]
    config: ServerConfig
    outcome: TrialOutcome
    predicted: dict[str, float]
    objective: float
    constraints: dict[str, float]
    points: tuple[Measurement, ...] = ()
    failure: FailureKind | None = None
    reason: str = ""
    boot_s: float = 0.0
    spent_s: float = 0.0
    misses: tuple[str, ...] = field(default_factory=tuple)
    repeats: int | None = None
    value: float | None = None
    decided_at: float | None = None
    simulated: bool = False
    place: Place | None = None
    deployment: Deployment | UnsetType = UNSET

    @property
    def label(self) -> str:
        return self.config.label if self.deployment is UNSET else self.deployment.name

    @property
    def unpriced(self) -> str:
        """The unmodelled knobs that differ from SGLang's defaults, in words."""
        return ", ".join(
            f"{name} {self.params[name]}" for name in UNMODELLED if self.params.get(name, DEFAULT) != DEFAULT
        )

    @property
    def launched(self) -> bool:
        return self.outcome is not TrialOutcome.RULED_OUT

    @property
    def feasible(self) -> bool:
        """Measured at the asked concurrency and within every SLO."""
        return self.outcome is TrialOutcome.MEASURED and all(value <= 0.0 for value in self.constraints.values())

    @property
    def target(self) -> Measurement | None:
        """The point that decides: at the asked load, or the most users that keep the limits."""
        if self.outcome is not TrialOutcome.MEASURED or not self.points:
            return None
        return next((p for p in self.points if p.load == self.decided_at), self.points[-1])

    @property
    def over_predicted(self) -> float:
        """Measured over predicted: the objective where it has a prediction of its own, else the output rate."""
        own = next((self.predicted[name] for name in ("users", "goodput") if name in self.predicted), None)
        if own is not None and self.value is not None:
            return self.value / max(own, 1e-9)
        return (self.target.output_tok_s if self.target else 0.0) / max(self.predicted["output_tok_s"], 1e-9)


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the best feasible trial, by its first launch; ties go to the earlier one."""
    return max((r for r in records if r.feasible and r.repeats is None), key=lambda r: r.objective, default=None)


def in_play(records: Sequence[TrialRecord], servers: str | None) -> list[TrialRecord]:
    """Return the trials that may win: of deployments with prefill and decode apart (`pd`) copies are the baseline."""
    if servers != ServersChoice.PD:
        return list(records)
    deployed = [(record, record.deployment) for record in records if isinstance(record.deployment, Deployment)]
    return [record for record, deployment in deployed if deployment.pools[-1].role is Role.DECODE]
