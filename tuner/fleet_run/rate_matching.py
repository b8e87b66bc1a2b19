"""Rate matching: one server of each role measured alone, and what that says of all fleets of such servers.

The equations of a prefill pass and of a decode step are kept; `prefill_role` and `decode_role` of the engine profile
say how many times as fast as them servers of these roles are, and `transfer_gb_s` what a KV cache is sent at.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprobe.bounds import ENGINE
from models.config import ServerConfig
from models.engine.profile import EngineProfile
from models.serving.fleet_replay import TRANSFER_LATENCY_S
from models.workload import Lengths, Workload
from planner.fleets.alone import alone, play_alone
from planner.fleets.deployed import server_context
from planner.fleets.deployment import Role
from planner.plans.candidates import Candidate
from planner.plans.make import PlanQuestion
from tuner.evidence.trial import TrialRecord
from tuner.seam import Alone

PARAMETER = {Role.PREFILL: "prefill_role", Role.DECODE: "decode_role"}
# Passes that wait while a prefill server is measured: enough that none runs half empty.
PASSES_WAITING = 3
# A role's speed is found in so many steps: a pass has parts that the speed does not change.
STEPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRate:
    """What a server of a role does alone: prompts per second (prefill), or ms per token (decode)."""

    role: Role
    label: str
    clients: int
    measured: float
    predicted: float

    @property
    def over_predicted(self) -> float:
        """How many times as fast as predicted it is."""
        return self.measured / self.predicted if self.role is Role.PREFILL else self.predicted / self.measured


def load_alone(role: Role, candidate: Candidate, workload: Workload, question: PlanQuestion) -> Workload:
    """Return the load under which a server of the candidate's role is measured alone.

    A prefill server gets prompts that ask for one token, as many as fill its passes; a decode server as many requests
    as it would hold in the fleet.
    """
    if role is Role.DECODE:
        return replace(workload, concurrency=max(1, round(candidate.prediction.running_requests)))
    assert candidate.prefill is not None  # rates are matched for prefill and decode apart
    config = candidate.prefill.config
    limits = alone(role, server_context(question, config), config).limits
    a_pass = max(config.attn_dp_size, int(min(limits.chunk, limits.max_prefill) // workload.isl.mean))
    clients = min(limits.max_running, PASSES_WAITING * a_pass)
    return replace(workload, osl=Lengths(nominal=1), concurrency=max(2, clients))


def role_rate(measured: Alone, question: PlanQuestion, workload: Workload) -> RoleRate:
    """Return a measurement beside what the question's profile says of the same server under the same load."""
    load = replace(workload, concurrency=measured.measured.concurrency)
    figure = measured.measured.output_tok_s if measured.role is Role.PREFILL else measured.measured.tpot_ms["mean"]
    return RoleRate(
        role=measured.role,
        label=measured.config.label,
        clients=load.concurrency,
        measured=figure,
        predicted=_predicted(measured.role, measured.config, load, question),
    )


def _predicted(role: Role, config: ServerConfig, load: Workload, question: PlanQuestion) -> float:
    played = play_alone(role, server_context(question, config), config, load)
    return played.output_tok_s if role is Role.PREFILL else 1e3 * float(played.tpot_s.mean())


def calibrated(
    question: PlanQuestion, measured: Sequence[Alone], records: Sequence[TrialRecord], workload: Workload
) -> PlanQuestion:
    """Return the question with the roles' speeds as measured alone, and the transfer's rate as whole launches had it.

    Roles that were not measured, and a transfer that no server spoke of, stay as the profile has them.
    """
    engine = question.engine or question.context().engine
    for one in measured:
        engine = _with_speed(engine, one, replace(question, engine=engine), workload)
    sent = workload.isl.mean * question.arch.kv_bytes_per_token()
    rate = transfer_gb_s(records, sent)
    if rate is not None:
        engine = replace(engine, parameters=replace(engine.parameters, transfer_gb_s=rate))
    return replace(question, engine=engine)


def _with_speed(engine: EngineProfile, one: Alone, question: PlanQuestion, workload: Workload) -> EngineProfile:
    """Return the profile under which the role's server does alone what it did."""
    name = PARAMETER[one.role]
    for _ in range(STEPS):
        factor = role_rate(one, replace(question, engine=engine), workload).over_predicted
        speed = ENGINE[name].clamped(getattr(engine.parameters, name) * factor)
        engine = replace(engine, parameters=replace(engine.parameters, **{name: speed}))
    return engine


def transfer_gb_s(records: Sequence[TrialRecord], sent_bytes: float) -> float | None:
    """Return the rate of one request's KV cache, without its handshakes; None where no server spoke of it.

    A cache that is sent more than once, to every rank of a decode server, is slower by that.
    """
    servers = [server for record in records for point in record.points for server in point.servers or ()]
    times_s = [1e-3 * server.transfer_ms - TRANSFER_LATENCY_S for server in servers if server.transfer_ms is not None]
    rates = [1e-9 * sent_bytes / time_s for time_s in times_s if time_s > 0.0]
    return ENGINE["transfer_gb_s"].clamped(statistics.median(rates)) if rates else None
