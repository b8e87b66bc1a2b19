"""Prefill/decode fleets: every ratio of servers and every layout of a role, by rates first, then by replay.

In closed form the rate X of requests per second follows from X x (prefill + transfer + decode) = clients, with a decode
step that grows with the batch it holds, and X no more than the prefill servers give. The best few are replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.config import ServerConfig
from models.costs.memory import ledger_of
from models.layout import Array, table_of
from models.serving.estimate import APART_S, LEAST_SERVED, Context, Prediction, prediction_of
from models.serving.fleet_replay import (
    FleetLoad,
    FleetModel,
    FleetReplay,
    Limit,
    Transfer,
    replay_fleet,
    transfer_note,
    transfer_of,
)
from models.serving.open_loop import QUEUED, in_flight, too_short, without_end
from models.workload import Metric, Slo, Workload, missed
from planner.fleets.pool_rates import PoolRates, Upstream, solve_rates
from planner.fleets.role_servers import (
    DecodeTable,
    RoleServer,
    decode_server,
    decode_table,
    is_allowed,
    prefill_rate,
    prefill_servers,
)
from planner.plans.candidates import Candidate, PrefillSide
from planner.plans.search import final_key, misses_of
from planner.plans.space import MTP_STEPS, checkpoint_flags, layouts
from planner.sglang.flags import flags_of

ROLE_FLAG = "disaggregation_mode"
# Ratios of one number of servers that are tried: every one up to so many servers.
MOST_RATIOS = 32
# Machines that one decode server spans.
DECODE_WIDTHS = (1, 2, 4)
# Deployments replayed event by event, requests per client replayed, and the most of them.
REPLAYED = 3
REQUESTS_PER_CLIENT = 5
LEAST_REQUESTS, MOST_REQUESTS = 1000, 12_000
# Of a crowd that stands in line at a fleet's limit: it is the same from wave to wave only after the first.
MOST_OF_A_CROWD = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What prefill and decode servers stand on, a server's machine each, and how many of both there may be."""

    prefill: Context
    decode: Context
    ratios: tuple[tuple[int, int], ...]

    @property
    def prefill_count(self) -> dict[int, int]:
        """Prefill servers beside each number of decode servers."""
        return {decode: prefill for prefill, decode in self.ratios}


def role_sizes(context: Context, servers: int) -> list[Sides]:
    """Return how `servers` machines, each the smallest server of `context`, may be shared between the roles.

    Decode servers span one, two or four of them (wide EP); of many machines every so many ratios are tried.
    """
    options = []
    for width in DECODE_WIDTHS:
        most = (servers - 1) // width
        step = max(1, most // MOST_RATIOS)
        ratios = tuple((servers - width * decode, decode) for decode in range(step, most + 1, step))
        machine = context.machine if width == 1 else context.machine.with_nodes(context.machine.nodes * width)
        options.append(Sides(prefill=context, decode=replace(context, machine=machine), ratios=ratios))
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """One deployment: a server of each role and how many of it."""

    prefill: RoleServer
    prefill_servers: int
    decode: RoleServer
    decode_servers: int


def can_disaggregate(context: Context) -> bool:
    """Say whether the release has prefill and decode servers."""
    return ROLE_FLAG in flags_of(context.version).by_dest


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetQuestion:
    """What is asked of a fleet: its whole load, its limits, and whether MTP may be used.

    The prefill servers of a machine are the same for every number of them, and kept.
    """

    workload: Workload
    slos: tuple[Slo, ...]
    mtp: bool
    kept: dict[int, tuple[Context, dict[int, RoleServer]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def prefill_servers(self, context: Context) -> dict[int, RoleServer]:
        """Return the best prefill server of a machine for each MTP depth that is planned."""
        if id(context) not in self.kept:
            depths = MTP_STEPS if self.mtp and context.arch.has_mtp else (0,)
            self.kept[id(context)] = context, prefill_servers(context, _layouts(context), self.workload, depths)
        return self.kept[id(context)][1]


def disaggregated(options: Sequence[Sides], question: FleetQuestion) -> list[Candidate]:
    """Return the best prefill/decode deployments among the options, best first."""
    return best_first([leader.replayed() for leader in leaders(options, question)], question)


def leaders(options: Sequence[Sides], question: FleetQuestion) -> list[Leader]:
    """Return the deployments to replay: the best in closed form, best first."""
    usable = [sides for sides in options if sides.ratios and can_disaggregate(sides.decode)]
    rated = [rows for rows in (_rated(sides, question) for sides in usable) if rows is not None]
    return list(itertools.islice(_leading(rated, question), REPLAYED))


def best_first(candidates: Sequence[Candidate], question: FleetQuestion) -> list[Candidate]:
    """Order deployments: those that miss least first, of equals those that give most."""
    return sorted(candidates, key=lambda c: (fleet_key(c, question.workload, question.slos), -c.output_tok_s))


def fleet_key(candidate: Candidate, workload: Workload, slos: tuple[Slo, ...]) -> float:
    """Return by how much (log) the fleet misses its worst limit; 0 when it keeps all."""
    each = replace(workload, concurrency=max(1, -(-workload.concurrency // candidate.servers)))
    return final_key(candidate.prediction, each, slos)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rated:
    """Every decode layout at every ratio of two sides, with the prefill server of its MTP depth, in closed form.

    `excess` is the worst excess over the limits (log, of the means), 0 where all are kept; `before_decode` how long a
    request waits for its first token, by the time that its decode takes.
    """

    sides: Sides
    prefill: dict[int, RoleServer]
    table: DecodeTable
    excess: Array
    requests_s: Array
    before_decode: Array

    def kind(self, row: int) -> tuple[int, int, bool]:
        """What a reader would call another deployment: GPUs of a decode server, how many of them, MTP or none."""
        gpus = self.table.configs[row].gpu_count
        return gpus, int(self.table.servers[row]), bool(self.table.depth[row])

    def is_allowed(self, row: int) -> bool:
        return is_allowed(self.sides.decode, self.table.configs[row])

    def split(self, row: int) -> _Split:
        """Return one row as a deployment."""
        decode_servers = int(self.table.servers[row])
        batch = int(self.table.table.most_running[row])
        return _Split(
            prefill=self.prefill[int(self.table.depth[row])],
            prefill_servers=self.sides.prefill_count[decode_servers],
            decode=decode_server(self.sides.decode, self.table.configs[row], batch=batch),
            decode_servers=decode_servers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """A deployment that is among the best in closed form."""

    question: FleetQuestion
    rows: _Rated
    row: int

    @property
    def before_decode(self) -> float:
        """Return how long a request waits for its first token in closed form, by the time that its decode takes."""
        return float(self.rows.before_decode[self.row])

    def replayed(self) -> Candidate:
        """Replay the deployment and return it as a candidate."""
        return _replayed(self.rows.sides, self.rows.split(self.row), self.question.workload, self.question.slos)


def _layouts(context: Context) -> list[ServerConfig]:
    return list(layouts(context.machine, context.version, checkpoint_flags(context.arch, context.version)))


def _rated(sides: Sides, question: FleetQuestion) -> _Rated | None:
    """Rate every ratio and layout of the two sides; None where no decode server fits."""
    context, workload = sides.decode, question.workload
    prefill = question.prefill_servers(sides.prefill)
    shapes = _layouts(context)
    table = decode_table(context, shapes, workload, depths=tuple(prefill), counts=tuple(sides.prefill_count))
    if table is None:
        return None
    isl = workload.isl.mean
    rates = {depth: prefill_rate(server.model, isl) for depth, server in prefill.items()}
    one = np.array([rates[int(depth)] for depth in table.depth])
    upstream = Upstream(
        most_requests_s=one * np.array([sides.prefill_count[int(count)] for count in table.servers]),
        before_s=1.0 / one + _transfer(sides).seconds(round(isl)),
    )
    solved = solve_rates(context, table, upstream, workload)
    return _Rated(
        sides=sides,
        prefill=prefill,
        table=table,
        excess=_excess(solved, question.slos),
        requests_s=solved.requests_s,
        before_decode=solved.ttft_s / (solved.e2e_s - solved.ttft_s),
    )


def _leading(rated: Sequence[_Rated], question: FleetQuestion) -> Iterator[Leader]:
    """Yield the best layout of each deployment, best first in closed form: ten layouts of one would tell less."""
    if not rated:
        return
    places = [(rows, row) for rows in rated for row in range(len(rows.excess))]
    excess, requests_s = (np.concatenate([getattr(rows, name) for rows in rated]) for name in ("excess", "requests_s"))
    yielded = set()
    for place in np.lexsort((-requests_s, excess)).tolist():
        rows, row = places[place]
        if rows.kind(row) not in yielded and rows.is_allowed(row):
            yielded.add(rows.kind(row))
            yield Leader(question=question, rows=rows, row=row)


def _excess(rates: PoolRates, slos: tuple[Slo, ...]) -> Array:
    seconds: dict[Metric, Array] = {Metric.TTFT: rates.ttft_s, Metric.TPOT: rates.tpot_s, Metric.E2E: rates.e2e_s}
    worst = np.zeros_like(rates.requests_s)
    for slo in slos:
        worst = np.maximum(worst, np.log(seconds[slo.metric] * 1e3 / slo.limit_ms))
    return worst


def _transfer(sides: Sides) -> Transfer:
    """Return the transfer between the two machines: the slower network decides."""
    return min(transfer_of(sides.prefill), transfer_of(sides.decode), key=lambda transfer: transfer.bytes_s)


def _replayed(sides: Sides, split: _Split, workload: Workload, slos: tuple[Slo, ...]) -> Candidate:
    """Replay a deployment and return it as a candidate: the decode servers, and those that prefill for them."""
    config = split.decode.config
    prediction = _predicted(sides, split, workload)
    return Candidate(
        config=config,
        prediction=prediction,
        ledger=ledger_of(split.decode.filled, table_of([config]), 0),
        misses=misses_of(prediction, workload, slos) if prediction.queue_grows else missed(slos, prediction),
        servers=split.decode_servers,
        prefill=PrefillSide(config=split.prefill.config, servers=split.prefill_servers),
    )


def _predicted(sides: Sides, split: _Split, workload: Workload) -> Prediction:
    """Predict the fleet; where arrivals are more than it answers, at its limit, with a queue that grows."""
    count = min(MOST_REQUESTS, max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * workload.concurrency))
    played, rate = _played(sides, split, workload, count), workload.request_rate
    if rate is None:
        return _prediction(sides.decode, split, workload, played)
    flight = in_flight(played.seen)
    if flight.grows or too_short(played.seen, rate):
        runnable = split.decode_servers * max(1.0, played.decode_batch)
        crowd = replace(workload, concurrency=max(1, round(QUEUED * runnable)), request_rate=None)
        saturated = _played(sides, split, crowd, min(MOST_OF_A_CROWD, REQUESTS_PER_CLIENT * crowd.concurrency))
        at_limit = _prediction(sides.decode, split, crowd, saturated)
        if flight.grows or at_limit.request_rate * split.decode_servers < LEAST_SERVED * rate:
            return without_end(at_limit, rate / split.decode_servers)
    steady = replace(played, seen=replace(played.seen, output_tok_s=rate * workload.osl.mean))
    return replace(_prediction(sides.decode, split, workload, steady), in_flight=flight)


def _played(sides: Sides, split: _Split, workload: Workload, count: int, seed: int = 0) -> FleetReplay:
    """Replay `count` requests of the load: the first and the last fifth are not in the result."""
    rng = np.random.default_rng(seed)
    isl, osl = workload.isl.sample(count, rng), workload.osl.sample(count, rng)
    model = FleetModel(
        prefill=split.prefill.model,
        prefill_servers=split.prefill_servers,
        decode=split.decode.model,
        decode_servers=split.decode_servers,
        transfer=_transfer(sides),
    )
    arrivals_s = None
    if workload.request_rate is not None:
        arrivals_s = np.cumsum(rng.exponential(1.0 / workload.request_rate, size=count))
    load = FleetLoad(isl=isl, osl=osl, concurrency=workload.concurrency, arrivals_s=arrivals_s, apart_s=APART_S)
    wave = count // REQUESTS_PER_CLIENT
    played = replay_fleet(model, load, measure_from=wave, measure_to=count - wave)
    if arrivals_s is None:  # Little's law, as for a single server: all clients always have one request on its way
        rate = workload.concurrency * float(played.seen.osl.sum() / played.seen.e2e_s.sum())
        played = replace(played, seen=replace(played.seen, output_tok_s=rate))
    return played


def _prediction(context: Context, split: _Split, workload: Workload, played: FleetReplay) -> Prediction:
    """Return what clients of the fleet see; rates and running requests are those of one decode server."""
    each = replace(workload, concurrency=max(1, round(played.decode_batch)), request_rate=None)
    of_server = prediction_of(context, split.decode.config, each, filled=split.decode.filled, played=played.seen)
    share = 1.0 / split.decode_servers
    return replace(
        of_server,
        output_tok_s=of_server.output_tok_s * share,
        total_tok_s=of_server.total_tok_s * share,
        request_rate=of_server.request_rate * share,
        running_requests=played.decode_batch,
        stall_ms=0.0,
        limiting=LIMITS[played.limit],
        band={**of_server.band, "output_tok_s": _scaled(of_server.band["output_tok_s"], share)},
        warnings=(*of_server.warnings, transfer_note(context)),
    )


def _scaled(band: tuple[float, float], factor: float) -> tuple[float, float]:
    return band[0] * factor, band[1] * factor


LIMITS = {
    Limit.PREFILL: "the prefill servers",
    Limit.DECODE: "the decode step",
    Limit.TRANSFER: "the KV transfer",
    Limit.KV: "KV cache of the decode servers",
    Limit.CAP: "running requests of the decode servers",
}
