"""The Plan page's question: read from its inputs, answered once for each, and written as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dashboard.readers.fleets import FleetCurve, fleet_curves
from dashboard.readers.roots import within_roots
from hwprobe.errors import InputError
from hwprobe.files import encode_json
from models.config import ServerConfig
from models.costs.memory import MemoryLedger, ledger_of
from models.layout import table_of
from models.serving.estimate import DEFAULT_ACCEPTANCE, Prediction, predict
from models.workload import missed
from planner.fleets.cost import Prices
from planner.fleets.make_fleet import plan_fleet
from planner.fleets.plan_document import plan_document
from planner.inputs import read_question
from planner.plans.candidates import Candidate
from planner.plans.make import Plan, PlanQuestion
from planner.plans.search import SAFE_FREE_GIB
from planner.rules import Question, first_error

# Clients at which a configuration's curve is drawn, as shares of those asked for.
CURVE_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What the inputs say. Exactly one of concurrency, request_rate and users is given."""

    hardware: str
    sglang_version: str
    isl: int
    osl: int
    range_ratio: float = 1.0
    concurrency: int | None = None
    request_rate: float | None = None
    users: int | None = None
    min_user_tok_s: float | None = None
    slo: tuple[str, ...] = ()
    mtp: bool = True
    mtp_acceptance: float = DEFAULT_ACCEPTANCE
    cost_per_gpu_hour: float | None = None

    def question(self) -> PlanQuestion:
        """Return the planner's question. Raises InputError naming the input that has no meaning."""
        return read_question(
            hardware=within_roots(self.hardware), model=None, sglang_version=self.sglang_version,
            slo=list(self.slo), profile=None, isl=self.isl, osl=self.osl, range_ratio=self.range_ratio,
            concurrency=self.concurrency,
            request_rate=self.request_rate, users=self.users, min_user_tok_s=self.min_user_tok_s, mtp=self.mtp,
            acceptance=self.mtp_acceptance,
        )  # fmt: skip

    def command(self) -> str:
        """Return the command line that prints the same answer."""
        words = ["sgtune", "plan"]
        for field in fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if field.name == "slo":
                words += [word for text in value for word in (flag, text)]
            elif field.name == "mtp":
                words += [] if value else ["--no-mtp"]
            elif value != field.default:
                words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)

    def plan(self) -> Plan:
        """Answer, from the cache when the same was asked before. Raises InputError for a bad question."""
        return _plan(self, _written(self.hardware))

    def prices(self) -> Prices | None:
        """Return what a GPU hour costs, None where nothing was said."""
        return None if self.cost_per_gpu_hour is None else Prices(gpu_hour=self.cost_per_gpu_hour)

    def document(self) -> str:
        """Return the plan as `sgtune plan --json` prints it."""
        return encode_json(plan_document(self.plan(), self.prices())) + "\n"

    def nearest(self) -> WhatIf | None:
        """Return the layout that lacks least memory where none fits; None where memory is not what decides."""
        return nearest_misfit(self.plan())

    def fleet_curves(self) -> list[FleetCurve]:
        """Return the curves of a fleet's deployments, from the cache like the plan."""
        return _fleet_curves(self, _written(self.hardware))

    def curves(self) -> list[Curve]:
        """Return every candidate's curve, from the cache like the plan."""
        return _curves(self, _written(self.hardware))


@lru_cache(maxsize=64)
def _plan(inputs: PlanInputs, written: float) -> Plan:
    return plan_fleet(inputs.question())


@lru_cache(maxsize=64)
def _curves(inputs: PlanInputs, written: float) -> list[Curve]:
    return curves(_plan(inputs, written))


@lru_cache(maxsize=64)
def _fleet_curves(inputs: PlanInputs, written: float) -> list[FleetCurve]:
    return fleet_curves(_plan(inputs, written))


def _written(hardware: str) -> float:
    """Return when a hardware file was written, so that a changed one is planned for anew; 0 for a name."""
    try:
        return Path(within_roots(hardware)).stat().st_mtime
    except (OSError, ValueError, InputError):
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One configuration under changed knobs and clients; `objection` is the rule or the memory against it."""

    config: ServerConfig
    clients: int
    prediction: Prediction | None
    ledger: MemoryLedger
    objection: str = ""
    misses: tuple[str, ...] = ()


def what_if(plan: Plan, config: ServerConfig, clients: int, changes: Mapping[str, Any]) -> WhatIf:
    """Predict a candidate with some fields changed: one configuration, not the whole plan."""
    changed, context = replace(config, **changes), plan.context
    workload = plan.question.workload(clients)
    table = table_of([changed])
    filled = context.memory(table)
    ledger = ledger_of(filled, table, 0)
    error = first_error(Question(config=changed, arch=context.arch, machine=context.machine, version=context.version))
    objection = "" if error is None else f"{error.message}; {error.fix}"
    if ledger.kv_tokens_per_rank < workload.longest_request:
        short = float(filled.shortage(workload.longest_request, 0.0)[0])
        why = f"{short:.1f} GiB short per GPU" if short > 0 else "raise mem_fraction_static"
        objection = f"the KV pool of a rank cannot hold one request: {why}"
        return WhatIf(config=changed, clients=clients, prediction=None, ledger=ledger, objection=objection)
    if not objection and ledger.free_gib < SAFE_FREE_GIB:
        objection = f"{ledger.free_gib:.1f} GiB would be left free per GPU: less than {SAFE_FREE_GIB:g} is an OOM away"
    prediction = predict(context, changed, workload)
    return WhatIf(
        config=changed, clients=clients, prediction=prediction, ledger=ledger, objection=objection,
        misses=missed(plan.question.all_slos, prediction),
    )  # fmt: skip


def nearest_misfit(plan: Plan) -> WhatIf | None:
    """Return the rejected configuration that lacks least memory. Its ledger holds the KV cache of one request and what
    must stay free, and so goes beyond the card by what is short."""
    short = [item for item in plan.found.rejected if item.shortage_gib > 0.0]
    if plan.best is not None or not short:
        return None
    nearest = min(short, key=lambda item: item.shortage_gib)
    machine = plan.context.machine.with_nodes(nearest.config.nnodes)
    table = table_of([nearest.config])
    ledger = ledger_of(replace(plan.context, machine=machine).memory(table), table, 0)
    fixed = {name: gib for name, gib in ledger.per_gpu_gib.items() if name not in ("KV pool", "free")}
    one_request = ledger.card_gib + nearest.shortage_gib - sum(fixed.values()) - SAFE_FREE_GIB
    needed = {**fixed, "KV pool": one_request, "free": SAFE_FREE_GIB}
    return WhatIf(
        config=nearest.config,
        clients=plan.concurrency,
        prediction=None,
        ledger=replace(ledger, per_gpu_gib=needed),
        objection=nearest.reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One configuration up to the clients that were asked for, replayed at each number of them."""

    config: ServerConfig
    clients: tuple[int, ...]
    tok_s_per_gpu: tuple[float, ...]
    user_tok_s: tuple[float, ...]


def curves(plan: Plan) -> list[Curve]:
    """Return the curve of every candidate; together they take about as long as the plan's own replays."""
    clients = sorted({max(1, round(plan.concurrency * share)) for share in CURVE_SHARES})
    return [_curve(plan, candidate, clients) for candidate in plan.found.candidates]


def _curve(plan: Plan, candidate: Candidate, clients: list[int]) -> Curve:
    config, gpus = candidate.config, candidate.config.gpu_count
    fewer = [predict(plan.context, config, plan.question.workload(count)) for count in clients[:-1]]
    predictions = [*fewer, candidate.prediction]
    return Curve(
        config=config,
        clients=tuple(clients),
        tok_s_per_gpu=tuple(prediction.output_tok_s / gpus for prediction in predictions),
        user_tok_s=tuple(prediction.user_tok_s for prediction in predictions),
    )
