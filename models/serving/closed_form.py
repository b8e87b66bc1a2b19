"""A closed loop of clients in steady state, in closed form: what many configurations deliver, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.costs.decode import DecodeStep, decode_step
from models.costs.prefill import prefill_s
from models.costs.system import System
from models.layout import Array, ConfigTable

# HTTP and scheduling on the way in and on the way out, per request; tokenisation per input token.
FRONT_END_S = 0.005
FRONT_END_TOKEN_S = 3e-6
# Arrivals bunch: a pass collects this many times the prompts a uniform stream would give it.
BURSTINESS = 2.5
# A request holds its input and, averaged over its life, a little more than half of its output.
MEAN_OUTPUT_HELD = 0.55
FIXED_POINT_ROUNDS = 4
# Share of the further pipeline stages that prefill keeps busy (assumed: nothing is published for R1).
PP_PREFILL_EFFICIENCY = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of every configuration: mean lengths in tokens, clients, MTP acceptance.

    `acceptance` is the probability that a drafted token is accepted (0 draws no gain from MTP).
    """

    isl: Array | float
    osl: Array | float
    concurrency: Array | float
    acceptance: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """Steady state of a closed loop. Times in seconds, rates per second; `running` over the whole server."""

    running: Array
    kv_limit: Array
    step: DecodeStep
    step_s: Array
    seconds_per_token: Array
    prefill_pass_s: Array
    stall_s: Array
    request_rate: Array
    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array


def accepted_tokens(table: ConfigTable, acceptance: float) -> Array:
    """Tokens one decode step yields per request: 1 + a + a^2 + ... over the MTP chain."""
    if acceptance <= 0.0:
        return np.ones_like(table.mtp_steps)
    if acceptance >= 1.0:
        return 1.0 + table.mtp_steps
    return (1.0 - acceptance ** (table.mtp_steps + 1.0)) / (1.0 - acceptance)


def stages_at_work(table: ConfigTable) -> Array:
    """Pipeline stages that work on prefill passes at the same time, on average."""
    return 1.0 + PP_PREFILL_EFFICIENCY * (table.pp - 1.0)


@dataclass(frozen=True, slots=True)
class _Rhythm:
    """How prefill passes fall between decode steps: the fixed point of arrival rate and prompts per pass."""

    pass_s: Array
    prompts: Array
    stall_s: Array
    rate: Array


def _rhythm(system: System, isl: Array, decode_s: Array, running: Array, step_s: Array) -> _Rhythm:
    """Find how many prompts share a pass. `decode_s` is a request's decode time without any stall."""
    chunk = system.table.chunk
    new = np.minimum(isl, chunk)
    passes = np.maximum(1.0, isl / chunk)  # passes one long prompt takes
    most_prompts = np.maximum(1.0, np.minimum(chunk, system.table.max_prefill) / isl)
    prompts = np.ones_like(running)
    for _ in range(FIXED_POINT_ROUNDS):
        pass_s = prefill_s(system, prompts, new, (isl - new) / 2.0) * passes
        stall_s = pass_s / prompts / stages_at_work(system.table)
        rate = running / (decode_s + running * stall_s)
        gathered = BURSTINESS * rate * step_s
        prompts = np.clip(gathered / np.maximum(1e-9, 1.0 - BURSTINESS * rate * stall_s), 1.0, most_prompts)
    return _Rhythm(pass_s, prompts, stall_s, rate)


def closed_loop(system: System, demand: Demand, kv_tokens: Array) -> ClosedForm:
    """Predict the steady state of `demand.concurrency` clients that each wait for their answer.

    Requests in service: the least of clients, --max-running-requests and what the KV cache holds. One
    cycle of a request is its decode steps plus everybody's prefill passes (SGLang runs prefill first).
    Known error: TPOT 2-4 % within a fitted version; TTFT 8-12 % up to 32 clients, worse beyond: the
    event replay is better there.
    """
    table = system.table
    isl, osl, clients = (np.asarray(x, dtype=np.float64) for x in (demand.isl, demand.osl, demand.concurrency))
    kv_limit = np.maximum(1.0, kv_tokens / (isl + MEAN_OUTPUT_HELD * osl))
    running = np.minimum(np.minimum(clients, table.most_running), kv_limit)
    step = decode_step(system, running, isl + osl / 2.0)
    step_s = step.total
    seconds_per_token = step_s / accepted_tokens(table, demand.acceptance)
    beat = _rhythm(system, isl, osl * seconds_per_token, running, step_s)
    tpot_s = seconds_per_token + np.maximum(running - 1.0, 0.0) * beat.stall_s / osl
    behind_others = 0.5 * np.minimum(1.0, BURSTINESS * beat.rate * beat.stall_s) * beat.pass_s * (running > 1.0)
    queue_s = np.maximum(0.0, clients - running) / beat.rate
    front_end_s = 2.0 * FRONT_END_S + FRONT_END_TOKEN_S * isl
    batches_missed = 0.5 * table.recv_interval + np.where(table.pp > 1, 0.0, 1.0) * (running > 1.0)
    ttft_s = front_end_s + beat.pass_s + behind_others + batches_missed * step_s + queue_s
    return ClosedForm(
        running=running,
        kv_limit=kv_limit,
        step=step,
        step_s=step_s,
        seconds_per_token=seconds_per_token,
        prefill_pass_s=beat.pass_s,
        stall_s=beat.stall_s,
        request_rate=beat.rate,
        output_tok_s=beat.rate * osl,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=ttft_s + tpot_s * np.maximum(osl - 1.0, 0.0),
    )
