"""What a given deployment delivers: as a candidate of a plan, and played event by event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from models.config import ServerConfig
from models.costs.memory import ledger_of
from models.layout import table_of
from models.serving.estimate import Context, predict, replay_workload
from models.serving.fleet_replay import Limit, Transfer
from models.serving.replay import Replay
from models.serving.role_times import prefill_role
from models.workload import Slo, Workload
from planner.fleets.deployment import Deployment, Role
from planner.fleets.role_servers import PrefillRoleServer, decode_server, role_server
from planner.fleets.split_replay import RoleSplit, Sides, played_split, replayed, requests_played
from planner.plans.candidates import Candidate
from planner.plans.make import PlanQuestion
from planner.plans.search import misses_of

ContextOf = Callable[[ServerConfig], Context]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedDeployment:
    """What clients of a deployment saw: `seen` of all its servers together.

    Of prefill and decode apart `transfer_s` are the seconds of one request's transfer, `transfer_bytes` its bytes, and
    `waits_s` the mean seconds of a request before decode, by what it waits for.
    """

    seen: Replay
    transfer_s: float = 0.0
    transfer_bytes: float = 0.0
    waits_s: dict[Limit, float] = field(default_factory=dict)


def server_context(question: PlanQuestion, config: ServerConfig) -> Context:
    """Return what one server of this size stands on: whole nodes of the question's machine, or a part of one."""
    hardware = question.hardware
    gpus = hardware.gpus[: config.gpu_count // config.nnodes]
    return replace(question, hardware=replace(hardware, nodes=config.nnodes, gpus=gpus)).context()


def candidate_of(deployment: Deployment, context_of: ContextOf, workload: Workload, slos: tuple[Slo, ...]) -> Candidate:
    """Return the deployment as a candidate: predicted for the whole load, with its memory and what it misses.

    Its pools are one of mixed servers, or one of prefill and one of decode servers.
    """
    pool = deployment.pools[-1]
    if pool.role is not Role.MIXED:
        sides, split = _sides(deployment, context_of)
        return replayed(sides, split, workload, slos)
    context, share = context_of(pool.config), _share(workload, pool.servers)
    prediction = predict(context, pool.config, share)
    table = table_of([pool.config])
    return Candidate(
        config=pool.config,
        prediction=prediction,
        ledger=ledger_of(context.memory(table), table, 0),
        misses=misses_of(prediction, share, slos),
        servers=pool.servers,
        load_share=_load_share(workload, pool.servers),
    )


def play_deployment(
    deployment: Deployment, context_of: ContextOf, workload: Workload, transfer: Transfer, seed: int = 0
) -> PlayedDeployment:
    """Play a closed loop of the workload's clients on a deployment; `transfer` is between its roles, if it has two."""
    pool = deployment.pools[-1]
    if pool.role is not Role.MIXED:
        sides, split = _sides(deployment, context_of)
        played = played_split(replace(sides, transfer=transfer), split, workload, requests_played(workload), seed)
        prompt = round(workload.isl.mean)
        sent = prompt * transfer.bytes_per_token
        return PlayedDeployment(
            seen=played.seen, transfer_s=transfer.seconds(prompt), transfer_bytes=sent, waits_s=played.waits_s
        )
    context, share = context_of(pool.config), _share(workload, pool.servers)
    filled = context.memory(table_of([pool.config]))
    of_one = replay_workload(context, pool.config, share, filled, seed=seed)
    everywhere = pool.servers * _load_share(workload, pool.servers)
    return PlayedDeployment(seen=replace(of_one, output_tok_s=of_one.output_tok_s * everywhere))


def _sides(deployment: Deployment, context_of: ContextOf) -> tuple[Sides, RoleSplit]:
    """Return the two roles of a deployment with the step times of a server of each."""
    prefill, decode = deployment.pools
    before, after = context_of(prefill.config), context_of(decode.config)
    sides = Sides(prefill=before, decode=after, ratios=((prefill.servers, decode.servers),))
    split = RoleSplit(
        prefill=prefill_server(before, prefill.config),
        prefill_servers=prefill.servers,
        decode=decode_server(after, decode.config, batch=decode.config.max_running_requests or 1),
        decode_servers=decode.servers,
    )
    return sides, split


def prefill_server(context: Context, config: ServerConfig) -> PrefillRoleServer:
    """Return a prefill server of this configuration."""
    server = role_server(context, config, batch=1)
    model = prefill_role(server.model, config, context)
    return PrefillRoleServer(config=server.config, filled=server.filled, model=model)


def _share(workload: Workload, servers: int) -> Workload:
    """Return one copy's load: its clients, the last copy having fewer where they do not divide."""
    return replace(workload, concurrency=-(-workload.concurrency // servers))


def _load_share(workload: Workload, servers: int) -> float:
    return workload.concurrency / (servers * -(-workload.concurrency // servers))
