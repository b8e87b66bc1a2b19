"""Case: one measured or requested point as the model sees it, and its prediction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.config import ServerConfig
from models.costs.decode import decode_step
from models.costs.weight_kernels import shares_of
from models.engine.profile import EngineParameters
from models.layout import Array, ConfigTable, table_of
from models.serving.closed_form import accepted_tokens, closed_loop
from models.serving.estimate import LEAST_SERVED, Context, demand_of, limits_of, replay_workload
from models.serving.fleet_replay import COLD_S, FleetLoad, FleetModel, replay_fleet, transfer_of
from models.serving.open_loop import crowd_of
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.role_times import (
    PrefillModel,
    ServerModel,
    decode_context,
    decode_role,
    prefill_context,
    prefill_role,
)
from models.serving.step_times import StepTimes
from models.serving.uncertainty import Errors, errors
from models.unpriced import Unpriced
from models.workload import Lengths, Workload

# Requests a client sends in a benchmark that does not say how many it sent, and the most that are replayed.
REQUESTS_PER_CLIENT = 10
# Of a steady run: one wave of warm-up and four measured.
STEADY_REQUESTS_PER_CLIENT = 5
MOST_REQUESTS = 3000
# A prefill/decode fleet is slow to fill: more requests of it are replayed.
MOST_FLEET_REQUESTS = 40_000
# What router, transfer and placement add to the errors of a single server (one standard deviation, relative).
FLEET_ERRORS = {"tpot": 0.06, "ttft": 0.35, "output_tok_s": 0.06}
# The rate of a request's KV transfer (GB/s), under the name of SGLang's metric.
TRANSFER_SPEED = "kv_transfer_speed_gb_s"
# The ledger's own error: near the point where the cache is just full, a percent decides who waits.
KV_UNCERTAINTY = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The load of a measurement.

    `requests` were sent in all, at `request_rate` a second (None: as fast as answers come) and never more than
    `concurrency` at once. A `decode_step` is a pure decode at `concurrency` running requests of `context_tokens`; of
    a `steady` run the first wave is warm-up and not measured.
    """

    kind: str
    isl: Lengths
    osl: Lengths
    concurrency: int
    requests: int
    request_rate: float | None = None
    context_tokens: float | None = None

    @property
    def workload(self) -> Workload:
        return Workload(isl=self.isl, osl=self.osl, concurrency=self.concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPool:
    """The prefill servers of a run on a prefill/decode fleet: configuration and number; `kv_tokens` is per server."""

    context: Context
    config: ServerConfig
    servers: int
    kv_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run on a resolved configuration. `kv_known` is true when a log gave `kv_tokens`.

    `acceptance_known` is false where MTP's acceptance in the context is a guess: measurements may determine it.
    `unpriced` are flags of the run that no equation has. With `prefill` the configuration is that of one of `servers`
    decode servers, and clients speak to the whole fleet. `doubt` multiplies the scatter of its measurements: above 1
    where flags or lengths of the run are guesses.
    """

    id: str
    context: Context
    config: ServerConfig
    run: Run
    kv_tokens: float
    kv_known: bool
    acceptance_known: bool = True
    measured: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unpriced: tuple[Unpriced, ...] = ()
    doubt: float = 1.0
    prefill: PrefillPool | None = None
    servers: int = 1

    @property
    def table(self) -> ConfigTable:
        return table_of([self.config])

    def with_parameters(self, parameters: EngineParameters) -> Case:
        """Return the case under other engine parameters."""
        engine = replace(self.context.engine, parameters=parameters)
        prefill = self.prefill
        if prefill is not None:  # servers of both roles run the same build
            prefill = replace(prefill, context=replace(prefill.context, engine=engine))
        return replace(self, context=replace(self.context, engine=engine), prefill=prefill)

    def with_acceptance(self, acceptance: float) -> Case:
        """Return the case with this acceptance where its own is a guess; the case itself where it is known."""
        if self.acceptance_known:
            return self
        return replace(self, context=replace(self.context, acceptance=acceptance))


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePrediction:
    """The predicted figures of a measurement, None where the kind of run lacks one.

    `limit` is a prefill/decode fleet's bottleneck: prefill, decode, transfer, kv or cap.
    """

    ttft_mean_ms: float | None
    ttft_median_ms: float | None
    tpot_mean_ms: float
    tpot_median_ms: float
    output_tok_s: float
    limit: str | None = None

    def figure(self, metric: str) -> float | None:
        """Return a figure by its name in point records."""
        value: float | None = getattr(self, metric)
        return value


def expected(case: Case) -> CasePrediction:
    """Return what the run would show, by replaying it (or, for a decode step, by its equations)."""
    if case.prefill is not None:
        return _of_fleet(case, case.prefill)
    return _decode_step(case) if case.run.kind == "decode_step" else _middle(_outcomes(case))


def predict_case(case: Case) -> tuple[CasePrediction, Errors]:
    """Return what the run would show, and one standard deviation of the relative error of each figure."""
    error = _errors(case)
    if case.prefill is not None:
        return _of_fleet(case, case.prefill), error.with_more(**FLEET_ERRORS)
    if case.run.kind == "decode_step":
        return _decode_step(case), error
    outcomes = _outcomes(case)
    if len(outcomes) > 1:  # the ledger's error decides who waits: its effect is part of the error
        ttft, tpot, rate = np.std(np.log(outcomes), axis=0)[[0, 2, 4]].tolist()
        error = error.with_more(ttft=ttft, tpot=tpot, output_tok_s=rate)
    return _middle(outcomes), error


def queue_grows(case: Case) -> bool:
    """Say whether the run sends more than the server answers: its TTFT is then that of this run's length alone."""
    run = case.run
    if run.request_rate is None or case.prefill is not None or run.concurrency < run.requests:
        return False
    filled = case.context.memory(case.table)
    crowd = crowd_of(case.config, run.workload, filled)
    most = replay_workload(case.context, case.config, crowd, filled).output_tok_s / run.osl.mean
    return most < LEAST_SERVED * run.request_rate


def _outcomes(case: Case) -> Array:
    """Figures of the replays, one row for each capacity of the KV cache that may be the true one."""
    played = [_played(case, case.kv_tokens)]
    if _ledger_decides(case, played[0]):
        played += [_played(case, (1.0 + away) * case.kv_tokens) for away in (-KV_UNCERTAINTY, KV_UNCERTAINTY)]
    return np.maximum([_figures(each) for each in played], 1e-9)


def _middle(outcomes: Array) -> CasePrediction:
    means = np.exp(np.mean(np.log(outcomes), axis=0)).tolist()
    return CasePrediction(
        ttft_mean_ms=means[0],
        ttft_median_ms=means[1],
        tpot_mean_ms=means[2],
        tpot_median_ms=means[3],
        output_tok_s=means[4],
    )


def _errors(case: Case) -> Errors:
    table = case.table
    system = case.context.system(table)
    kv_tokens = np.array([case.kv_tokens])
    demand = demand_of(case.context, case.run.workload)
    steady = closed_loop(system, demand, kv_tokens)
    relative = errors(case.context.engine, system, case.config, steady, case.run.osl.mean)
    return relative if case.config.speculative is None else relative.with_acceptance(case.context.acceptance_spread)


def _decode_step(case: Case) -> CasePrediction:
    run, table = case.run, case.table
    running, length = np.array([float(run.concurrency)]), np.array([run.context_tokens or 1.0])
    step_s = float(decode_step(case.context.system(table), running, length).total[0])
    accepted = float(accepted_tokens(table, case.context.acceptance)[0])
    tpot_ms = step_s / accepted * 1e3
    return CasePrediction(
        ttft_mean_ms=None,
        ttft_median_ms=None,
        tpot_mean_ms=tpot_ms,
        tpot_median_ms=tpot_ms,
        output_tok_s=run.concurrency * accepted / step_s,
    )


def _ledger_decides(case: Case, played: Replay) -> bool:
    """Whether the ledger's error decides if requests wait: the cache was full, or nearly, but need not have been."""
    run = case.run
    least = run.concurrency * (run.isl.mean + 0.5 * run.osl.mean)
    full = played.peak_kv_tokens > (1.0 - KV_UNCERTAINTY) * case.kv_tokens
    avoidable = least < (1.0 + 2 * KV_UNCERTAINTY) * case.kv_tokens
    return full and avoidable and not case.kv_known and run.concurrency <= case.table.most_running[0]


def _played(case: Case, kv_tokens: float) -> Replay:
    run, table = case.run, case.table
    limits = limits_of(case.config, table, kv_tokens)
    clients = min(run.concurrency, run.requests)
    times = StepTimes(
        case.context.system(table), acceptance=case.context.acceptance, largest_batch=min(clients, limits.max_running)
    )
    rng = np.random.default_rng(0)
    isl, osl = _typical(run.isl, run.requests, rng), _typical(run.osl, run.requests, rng)
    arrivals = None if run.request_rate is None else _poisson(run.request_rate, run.requests, rng)
    cold = _first_wave_s(case.context) if run.kind == "serving" else 0.0
    warm = min(clients, run.requests - 1) if run.kind == "steady" else 0
    load = ReplayLoad(isl=isl, osl=osl, concurrency=clients, arrivals_s=arrivals, first_wave_s=cold)
    return replay(times, limits, load, measure_from=warm)


def _first_wave_s(context: Context) -> float:
    """Return how long a benchmark's first requests wait beyond their prefill: until its kernels are ready."""
    own = shares_of(context.arch, context.machine).first_wave_s
    return context.engine.parameters.first_wave_s if own is None else own


def _of_fleet(case: Case, prefill: PrefillPool) -> CasePrediction:
    """Return what clients of a prefill/decode fleet see, by replaying router, both roles and the transfer."""
    run = case.run
    count = min(run.requests, MOST_FLEET_REQUESTS)
    rng = np.random.default_rng(0)
    model = FleetModel(
        prefill=_prefill_server(prefill, run.concurrency),
        prefill_servers=prefill.servers,
        decode=_decode_server(case),
        decode_servers=case.servers,
        transfer=transfer_of(case.context),
        stream_interval=case.config.stream_interval or 1,
    )
    load = FleetLoad(
        isl=_typical(run.isl, count, rng),
        osl=_typical(run.osl, count, rng),
        concurrency=min(run.concurrency, count),
        arrivals_s=None if run.request_rate is None else _poisson(run.request_rate, count, rng),
        cold_s=COLD_S if run.kind == "serving" else 0.0,
    )
    played = replay_fleet(model, load)
    means = np.maximum(_figures(played.seen), 1e-9).tolist()
    return CasePrediction(
        ttft_mean_ms=means[0],
        ttft_median_ms=means[1],
        tpot_mean_ms=means[2],
        tpot_median_ms=means[3],
        output_tok_s=means[4],
        limit=str(played.limit),
    )


def _server(context: Context, config: ServerConfig, kv_tokens: float, clients: int) -> ServerModel:
    table = table_of([config])
    limits = limits_of(config, table, kv_tokens)
    largest = max(1, min(clients, limits.max_running))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    return ServerModel(times=times, limits=limits)


def _decode_server(case: Case) -> ServerModel:
    context = decode_context(case.context, case.config)
    server = _server(context, case.config, case.kv_tokens, case.run.concurrency)
    return decode_role(server, case.config, context)


def _prefill_server(prefill: PrefillPool, clients: int) -> PrefillModel:
    context = prefill_context(prefill.context)
    server = _server(context, prefill.config, prefill.kv_tokens, clients)
    return prefill_role(server, prefill.config, context)


def _typical(lengths: Lengths, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Lengths at evenly spaced quantiles in random order: a sample with the law's own mean and spread."""
    quantiles = (np.arange(count) + 0.5) / count
    return rng.permutation(lengths.at(quantiles))


def _poisson(rate: float, count: int, rng: np.random.Generator) -> Array:
    """Arrival times of a Poisson stream: what SGLang's benchmark sends at --request-rate."""
    return np.concatenate([[0.0], np.cumsum(rng.exponential(1.0 / rate, count - 1))])


def _figures(played: Replay) -> list[float]:
    return [
        float(played.ttft_s.mean() * 1e3),
        float(np.median(played.ttft_s) * 1e3),
        float(played.tpot_s.mean() * 1e3),
        float(np.median(played.tpot_s) * 1e3),
        played.output_tok_s,
    ]
