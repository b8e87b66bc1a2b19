"""One server of a role by itself, played: prompts per second of a prefill server, the step of a decode server."""

from __future__ import annotations

import numpy as np

from models.config import ServerConfig
from models.serving.estimate import Context
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.role_times import ServerModel
from models.workload import Workload
from planner.fleets.deployed import prefill_server
from planner.fleets.deployment import Role
from planner.fleets.role_servers import decode_server

# Waves of requests played: the first is warm-up, during the last the clients still send.
WAVES = 6


def play_alone(role: Role, context: Context, config: ServerConfig, workload: Workload, seed: int = 0) -> Replay:
    """Play a closed loop on one server of a role: prompts with one output token each, or decode without prefill.

    Its rate is that of prompts, or of tokens.
    """
    rng = np.random.default_rng(seed)
    count = WAVES * workload.concurrency
    model = alone(role, context, config)
    osl = np.ones(count, dtype=np.int64) if role is Role.PREFILL else workload.osl.sample(count, rng)
    load = ReplayLoad(isl=workload.isl.sample(count, rng), osl=osl, concurrency=workload.concurrency)
    last = count - workload.concurrency
    return replay(model.times, model.limits, load, measure_from=workload.concurrency, measure_until=last)


def alone(role: Role, context: Context, config: ServerConfig) -> ServerModel:
    """Return the step times and limits of a server of a role."""
    if role is Role.PREFILL:
        return prefill_server(context, config).model
    return decode_server(context, config, batch=config.max_running_requests or 1).model
