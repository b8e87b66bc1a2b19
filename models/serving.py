"""A closed loop of clients in steady state, in closed form: what many configurations deliver, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.architecture import ModelArchitecture
from models.decode import DecodeStep, decode_step
from models.engine_profile import EngineParameters
from models.layout import Array, ConfigTable
from models.machine import Machine
from models.prefill import prefill_s

# HTTP, tokenisation and scheduling before the first pass, per request.
FRONT_END_S = 0.010
# Arrivals bunch: a pass collects this many times the prompts a uniform stream would give it.
BURSTINESS = 2.5
# A request holds its input and, averaged over its life, a little more than half of its output.
MEAN_OUTPUT_HELD = 0.55
FIXED_POINT_ROUNDS = 4
# Share of the further pipeline stages that prefill keeps busy (assumed: nothing is published for R1).
PP_PREFILL_EFFICIENCY = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of every configuration: mean lengths in tokens, clients, acceptance, expert skew.

    `acceptance` is the probability that a drafted token is accepted (0 draws no gain from MTP).
    """

    isl: Array | float
    osl: Array | float
    concurrency: Array | float
    acceptance: float = 0.7
    sigma: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Steady state of a closed loop. Times in seconds, rates per second; `running` over the whole server."""

    running: Array
    kv_limit: Array
    step: DecodeStep
    step_s: Array
    prefill_pass_s: Array
    prompts_per_pass: Array
    stall_s: Array
    request_rate: Array
    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array
    queue_s: Array


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


def closed_loop(
    arch: ModelArchitecture,
    machine: Machine,
    table: ConfigTable,
    engine: EngineParameters,
    demand: Demand,
    kv_tokens: Array,
) -> Serving:
    """Predict the steady state of `demand.concurrency` clients that each wait for their answer.

    Requests in service: the least of clients, --max-running-requests and what the KV cache holds. One
    cycle of a request is its decode steps plus everybody's prefill passes (SGLang runs prefill first).
    Known error: TPOT 2-4 % within a fitted version; TTFT 8-12 % up to 32 clients, worse beyond: the
    event replay is better there.
    """
    isl, osl, clients = (np.asarray(x, dtype=np.float64) for x in (demand.isl, demand.osl, demand.concurrency))
    per_rank_cap = np.maximum(1.0, np.floor(table.max_running / table.attn_dp))
    kv_limit = np.maximum(1.0, kv_tokens / (isl + MEAN_OUTPUT_HELD * osl))
    running = np.minimum(np.minimum(clients, per_rank_cap * table.attn_dp), kv_limit)
    accepted = accepted_tokens(table, demand.acceptance)
    step = decode_step(arch, machine, table, engine, running, isl + osl / 2.0, demand.sigma)
    step_s = step.total
    chunked = np.maximum(1.0, isl / table.chunk)  # passes one long prompt takes
    new = np.minimum(isl, table.chunk)
    most_prompts = np.maximum(1.0, table.chunk / isl)

    prompts = np.ones_like(running)
    for _ in range(FIXED_POINT_ROUNDS):
        pass_s = prefill_s(arch, machine, table, engine, prompts, new, (isl - new) / 2.0, demand.sigma) * chunked
        stall_s = pass_s / prompts / stages_at_work(table)
        cycle_s = osl * step_s / accepted + running * stall_s
        rate = running / cycle_s
        gathered = BURSTINESS * rate * step_s
        prompts = np.clip(gathered / np.maximum(1e-9, 1.0 - BURSTINESS * rate * stall_s), 1.0, most_prompts)
    tpot_s = step_s / accepted + np.maximum(running - 1.0, 0.0) * stall_s / osl
    waiting = np.maximum(0.0, clients - running)
    queue_s = waiting / rate
    behind_others = 0.5 * np.minimum(1.0, BURSTINESS * rate * stall_s) * pass_s * (running > 1.0)
    ttft_s = FRONT_END_S + pass_s + behind_others + 0.5 * table.recv_interval * step_s + queue_s
    return Serving(
        running=running,
        kv_limit=kv_limit,
        step=step,
        step_s=step_s,
        prefill_pass_s=pass_s,
        prompts_per_pass=prompts,
        stall_s=stall_s,
        request_rate=rate,
        output_tok_s=rate * osl,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=ttft_s + tpot_s * np.maximum(osl - 1.0, 0.0),
        queue_s=queue_s,
    )
