"""Rates of prefill/decode fleets in closed form, all of them at once: requests per second, and mean latencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.costs.decode import decode_step
from models.costs.system import System
from models.layout import Array
from models.serving.closed_form import accepted_tokens
from models.serving.estimate import Context
from models.workload import Workload
from planner.fleets.role_servers import DecodeTable

# Prefill servers never run beyond this share of their rate without a queue that grows.
MOST_PREFILL_SHARE = 0.97
BISECTIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRates:
    """One row per fleet: requests per second it completes, and mean latencies in seconds."""

    requests_s: Array
    tpot_s: Array
    ttft_s: Array
    e2e_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """What happens before decode, per fleet: requests per second that its prefill servers give, and seconds of one."""

    most_requests_s: Array
    before_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decode:
    """The decode pools in means."""

    system: System
    servers: Array
    accepted: Array
    speed: float
    cap: Array
    context_tokens: float
    osl: float

    def tpot_s(self, batch: Array) -> Array:
        """Seconds per output token with `batch` requests on all servers of each fleet together."""
        each = np.clip(np.ceil(batch / self.servers), 1.0, np.maximum(1.0, self.system.table.most_running))
        step = decode_step(self.system, each, np.array(self.context_tokens))
        return step.total / (self.accepted * self.speed)

    def requests_s(self, batch: Array) -> Array:
        """Requests per second that `batch` requests decoding complete."""
        return batch / (self.osl * self.tpot_s(batch))


def solve_rates(context: Context, decode: DecodeTable, upstream: Upstream, workload: Workload) -> PoolRates:
    """Solve the rates: the batch at which all clients are in flight, within what prefill gives and decode holds."""
    isl, osl = workload.isl.mean, workload.osl.mean
    flow = _Decode(
        system=context.system(decode.table),
        servers=decode.servers,
        accepted=accepted_tokens(decode.table, context.acceptance),
        speed=context.engine.parameters.decode_role,
        cap=decode.servers * np.minimum(decode.table.most_running, decode.kv_tokens / (isl + osl)),
        context_tokens=isl + 0.5 * osl,
        osl=osl,
    )
    most = MOST_PREFILL_SHARE * upstream.most_requests_s
    if workload.request_rate is not None:
        most = np.minimum(most, workload.request_rate)
    clients = float(workload.concurrency) if workload.request_rate is None else np.inf
    low, high = np.zeros_like(flow.cap), flow.cap
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        rate = flow.requests_s(middle)
        more = (rate < most) & (rate * upstream.before_s + middle < clients)
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    served = np.minimum(flow.requests_s(high), most)
    tpot_s = flow.tpot_s(high)
    waiting_s = np.zeros_like(served)
    if workload.request_rate is None:
        waiting_s = np.maximum(0.0, clients / served - upstream.before_s - osl * tpot_s)
    ttft_s = upstream.before_s + waiting_s
    return PoolRates(requests_s=served, tpot_s=tpot_s, ttft_s=ttft_s, e2e_s=ttft_s + osl * tpot_s)
