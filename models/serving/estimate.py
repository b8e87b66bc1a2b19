"""Prediction: one configuration's figures for one workload, with breakdown, limit and band."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import Memory, memory
from models.costs.system import System
from models.engine.profile import EngineProfile
from models.engine.tuned import moe_tile_rows
from models.layout import Array, ConfigTable, table_of
from models.machine import Machine
from models.serving.acceptance import TEXT_SPREAD
from models.serving.caveats import cap_warning, kernel_warning, structural_warnings
from models.serving.closed_form import ClosedForm, Demand, accepted_tokens, closed_loop
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from models.serving.uncertainty import errors
from models.version import at_least
from models.workload import ALL_AT_ONCE, Statistic, Workload

# Published R1 acceptance with a chain of one to three drafts gives 1.7-1.8, 2.2-2.4, 2.5-2.8 tokens a step.
DEFAULT_ACCEPTANCE = 0.7
# From here on speculation runs under the overlap scheduler by default (SGLANG_ENABLE_SPEC_V2).
SPEC_V2 = "0.5.11"
# Warm-up and measured requests per client of a replay, and the most requests replayed.
REPLAY_WAVES = 4
# One wave of a large crowd is 2 % off the rate of a long replay: what it waits for comes and goes in waves too.
LEAST_WAVES = 2
# Where lengths vary a mean or p99 rests on at least so many requests.
LEAST_OF_LENGTHS = 400
# Clients that start together still send one after the other: the first request is prefilled alone, and requests of one
# length then keep that order for good.
APART_S = 0.0005
LONGEST_REPLAY = 3000
MOST_CLIENTS = 2048
# An open loop that answers less than this share of what is sent falls behind without end.
LEAST_SERVED = 0.97


def acceptance_of(engine: EngineProfile | None) -> float:
    """Return the probability that a drafted token is accepted: the profile's measured one, or the prior."""
    measured = None if engine is None else engine.mtp_acceptance
    return DEFAULT_ACCEPTANCE if measured is None else measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a prediction depends on except configuration and workload.

    `sigma` is the spread of expert popularity, the engine profile's unless given; `mtp_overlap` whether speculation
    runs under the overlap scheduler, by default as the release has it; `acceptance_spread` is one relative standard
    deviation of a speculative step's yield; `moe_rows` the least rows per touched expert, by default as the release's
    tuned kernels have it for this GPU.
    """

    arch: ModelArchitecture
    machine: Machine
    engine: EngineProfile
    version: Version
    acceptance: float = DEFAULT_ACCEPTANCE
    sigma: float | None = None
    independence: float = 1.0
    mtp_overlap: bool | None = None
    acceptance_spread: float = TEXT_SPREAD
    moe_rows: float | None = None

    @property
    def spread(self) -> float:
        """The log-spread of expert popularity."""
        return self.engine.sigma if self.sigma is None else self.sigma

    def system(self, table: ConfigTable) -> System:
        """Return the inputs of these configurations' step times."""
        return System(
            arch=self.arch,
            machine=self.machine,
            table=table,
            engine=self.engine.parameters,
            sigma=self.spread,
            independence=self.independence,
            mtp_overlap=at_least(self.version, SPEC_V2) if self.mtp_overlap is None else self.mtp_overlap,
            moe_tile_rows=self._tile_rows(table),
        )

    def _tile_rows(self, table: ConfigTable) -> Array:
        """Least rows per touched expert of every configuration, by its TP degree."""
        if self.moe_rows is not None:
            return np.full_like(table.tp, self.moe_rows)
        rows = {
            tp: moe_tile_rows(self.version, self.machine.family, self.machine.device, int(tp))
            for tp in set(table.tp.ravel().tolist())
        }
        return np.select([table.tp == tp for tp in rows], list(rows.values()))

    def memory(self, table: ConfigTable) -> Memory:
        """Return the ledgers of these configurations."""
        return memory(self.arch, self.machine, table, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """Requests in flight in an open loop, over time; `served_share` is the rate answered over the rate sent.

    Where less is answered than sent the queue grows without end: nothing in it has a steady value, and `mean` and
    `p99` are infinite.
    """

    mean: float
    p99: float
    served_share: float

    @property
    def grows(self) -> bool:
        return self.served_share < LEAST_SERVED


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One configuration under one workload. Latencies in ms by statistic; rates in tokens per second.

    `user_tok_s` is 1000 / mean TPOT: the speed a user sees while being served; `user_tok_s_with_wait` counts the time
    to the first token as well. `band` holds the 90 % interval of tpot_mean_ms, ttft_mean_ms and output_tok_s.
    `accepted_tokens` is one decode step's yield per request, `stall_ms` the prefill passes of others per output token
    (closed form). `in_flight` is given for open loops alone; where their queue grows without end TTFT and E2E are
    infinite, the speed with the wait is 0, and the other figures are those of the server at its limit.
    """

    output_tok_s: float
    total_tok_s: float
    user_tok_s: float
    user_tok_s_with_wait: float
    request_rate: float
    running_requests: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    step_ms: float
    accepted_tokens: float
    stall_ms: float
    breakdown_ms: dict[str, float]
    limiting: str
    band: dict[str, tuple[float, float]]
    retractions: int = 0
    warnings: tuple[str, ...] = field(default_factory=tuple)
    in_flight: InFlight | None = None

    @property
    def queue_grows(self) -> bool:
        """An open loop sends more than the server answers."""
        return self.in_flight is not None and self.in_flight.grows


def predict_many(context: Context, table: ConfigTable, workload: Workload, filled: Memory) -> ClosedForm:
    """Closed-form steady state of every configuration of the table, whose ledger is `filled`."""
    return closed_loop(context.system(table), demand_of(context, workload), filled.kv_tokens)


def demand_of(context: Context, workload: Workload) -> Demand:
    """Return the workload in means, as the closed form takes it."""
    return Demand(
        isl=workload.isl.mean,
        osl=workload.osl.mean,
        concurrency=float(workload.concurrency),
        acceptance=context.acceptance,
    )


def predict(context: Context, config: ServerConfig, workload: Workload, seed: int = 0) -> Prediction:
    """Predict one resolved configuration by replaying the scheduler; the breakdown is the closed form's."""
    filled = context.memory(table_of([config]))
    return prediction_of(
        context, config, workload, filled=filled, played=replay_workload(context, config, workload, filled, seed=seed)
    )


def prediction_of(
    context: Context, config: ServerConfig, workload: Workload, *, filled: Memory, played: Replay
) -> Prediction:
    """Return the prediction that a replay and the closed form of the same load make together."""
    table = table_of([config])
    system = context.system(table)
    steady = predict_many(context, table, workload, filled)
    parts = {name: float(np.ravel(values)[0]) for name, values in steady.step.parts_ms().items()}
    tpot, ttft, e2e = (statistics_ms(x) for x in (played.tpot_s, played.ttft_s, played.e2e_s))
    mean_osl = float(played.osl.mean())
    error = errors(context.engine, system, config, steady, workload.osl.mean)
    if config.speculative is not None:
        error = error.with_acceptance(context.acceptance_spread)
    return Prediction(
        output_tok_s=played.output_tok_s,
        total_tok_s=played.output_tok_s * (1.0 + workload.isl.mean / mean_osl),
        user_tok_s=1e3 / (tpot["mean"] or e2e["mean"]),  # a single output token has no TPOT
        user_tok_s_with_wait=1.0 / float((played.e2e_s / played.osl).mean()),
        request_rate=played.output_tok_s / mean_osl,
        running_requests=min(float(steady.running[0]), workload.concurrency),
        ttft_ms=ttft,
        tpot_ms=tpot,
        e2e_ms=e2e,
        step_ms=float(steady.step_s[0]) * 1e3,
        accepted_tokens=float(accepted_tokens(table, context.acceptance)[0]),
        stall_ms=stall_ms_per_token(steady, 0, workload),
        breakdown_ms=parts,
        limiting=limiting_resource(steady, 0, workload),
        band=error.around(ttft["mean"], tpot["mean"], played.output_tok_s),
        retractions=played.retractions,
        warnings=(
            *structural_warnings(config),
            *cap_warning(config, workload.concurrency),
            *kernel_warning(
                system, config, release=str(context.version), context=workload.isl.mean + workload.osl.mean / 2.0
            ),
        ),
    )


def replay_workload(
    context: Context, config: ServerConfig, workload: Workload, filled: Memory, seed: int = 0
) -> Replay:
    """Replay a closed loop of the workload's clients: one wave of warm-up, then the measured ones, with all at work.

    `filled` is the configuration's ledger. Of a crowd far beyond what runs at once only `MOST_CLIENTS` are
    replayed; the others wait in line for as long as the server takes to serve them.
    """
    table = table_of([config])
    kv_tokens, most_running = float(filled.kv_tokens[0]), float(table.most_running[0])
    runnable = min(most_running, kv_tokens / (workload.isl.mean + workload.osl.mean))
    clients = min(workload.concurrency, max(MOST_CLIENTS, int(2 * runnable)))
    varied = workload.isl.range_ratio < 1.0 or workload.osl.range_ratio < 1.0
    full_waves = max(REPLAY_WAVES, -(-LEAST_OF_LENGTHS // clients)) if varied else REPLAY_WAVES
    waves = max(LEAST_WAVES, min(full_waves, LONGEST_REPLAY // clients))
    last = clients * (1 + waves)
    count = last + clients  # every client sends until the end: the last answers come from a full server
    rng = np.random.default_rng(seed)
    largest = int(min(clients, most_running))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    limits = limits_of(config, table, kv_tokens)
    isl, osl = workload.isl.sample(count, rng), workload.osl.sample(count, rng)
    load = ReplayLoad(isl=isl, osl=osl, concurrency=clients, apart_s=APART_S)
    played = replay(times, limits, load, measure_from=clients, measure_until=last)
    # Little's law: all clients always have one request on its way. What finished between two instants depends on
    # which part of a wave falls between them, by a fifth where two waves are all that is replayed.
    output_tok_s = clients * float(played.osl.sum() / played.e2e_s.sum())
    in_line_s = (workload.concurrency - clients) * float(osl.mean()) / output_tok_s
    return replace(played, output_tok_s=output_tok_s, ttft_s=played.ttft_s + in_line_s, e2e_s=played.e2e_s + in_line_s)


def limits_of(config: ServerConfig, table: ConfigTable, kv_tokens: float) -> Limits:
    """Return the scheduler's limits for the one configuration in `table`."""
    return Limits(
        kv_tokens=int(kv_tokens),
        max_running=int(table.most_running[0]),
        chunk=int(table.chunk[0]),
        max_prefill=int(table.max_prefill[0]),
        conservativeness=config.schedule_conservativeness or 1.0,
    )


def statistics_ms(seconds: Array) -> dict[str, float]:
    """Return mean, p50, p90, p95 and p99 in milliseconds."""
    p50, p90, p95, p99 = np.percentile(seconds, [50, 90, 95, 99]) * 1e3
    return {
        Statistic.MEAN: float(seconds.mean() * 1e3),
        Statistic.P50: float(p50),
        Statistic.P90: float(p90),
        Statistic.P95: float(p95),
        Statistic.P99: float(p99),
    }


LIMIT_NAMES = {
    "attention_gemm": "attention projections (HBM)",
    "kv_attention": "KV cache streaming",
    "experts": "expert weights (HBM)",
    "shared_expert": "shared expert (HBM)",
    "gate": "router",
    "dense_mlp": "dense layers",
    "collectives": "collectives between GPUs",
    "head": "LM head",
    "launch": "kernel launch latency",
    "token_work": "per-token work",
    "host": "host scheduling",
    "rank_sync": "rank synchronisation",
    "draft": "MTP draft",
    "eager": "eager launches beyond the CUDA graphs",
}


def limiting_resource(serving: ClosedForm, index: int, workload: Workload) -> str:
    """Name what the clients wait for most: a queue, prefill, or the largest cost of a decode step."""
    running = float(np.ravel(serving.running)[index])
    if running < ALL_AT_ONCE * workload.concurrency:
        kv = float(np.ravel(serving.kv_limit)[index])
        return "KV cache capacity" if kv <= running * 1.001 else "max_running_requests"
    stalls = stall_ms_per_token(serving, index, workload)
    if float(np.ravel(serving.prefill_pass_s)[index]) > workload.osl.mean * float(np.ravel(serving.tpot_s)[index]):
        return "prefill passes"
    parts = {name: float(np.ravel(values)[index]) for name, values in serving.step.parts_ms().items()}
    largest = max(parts, key=lambda name: parts[name])
    return "prefill passes" if stalls > parts[largest] else LIMIT_NAMES[largest]


def stall_ms_per_token(serving: ClosedForm, index: int, workload: Workload) -> float:
    """Milliseconds of other requests' prefill passes that each output token waits for."""
    others = float(np.ravel(serving.running)[index]) - 1.0
    return max(0.0, others) * float(np.ravel(serving.stall_s)[index]) * 1e3 / workload.osl.mean
