"""Prefill/decode fleets: every ratio of servers and every layout of a role, by rates first, then by replay.

In closed form the rate X of requests per second follows from X x (prefill + transfer + decode) = clients, with a decode
step that grows with the batch it holds, and X no more than the prefill servers give. The best few are replayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from models.costs.memory import ledger_of
from models.layout import Array, table_of
from models.serving.estimate import APART_S, Context, Prediction, prediction_of
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
from planner.plans.search import Candidate, PrefillSide, final_key
from planner.plans.space import MTP_STEPS, layouts
from planner.sglang.flags import flags_of

ROLE_FLAG = "disaggregation_mode"
# Ratios of one number of servers that are tried: every one up to so many servers.
MOST_RATIOS = 32
# Deployments replayed event by event, requests per client replayed, and the most of them.
REPLAYED = 3
REQUESTS_PER_CLIENT = 5
LEAST_REQUESTS, MOST_REQUESTS = 1000, 12_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What prefill and decode servers stand on, a server's machine each, and how many of both there may be."""

    prefill: Context
    decode: Context
    ratios: tuple[tuple[int, int], ...]

    @classmethod
    def alike(cls, context: Context, servers: int) -> Sides:
        """Return one kind of machine, shared at every ratio; of many servers every so many ratios are tried."""
        step = max(1, servers // MOST_RATIOS)
        ratios = tuple((servers - decode, decode) for decode in range(step, servers, step))
        return cls(prefill=context, decode=context, ratios=ratios)


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


def disaggregated(sides: Sides, workload: Workload, slos: tuple[Slo, ...], *, mtp: bool) -> list[Candidate]:
    """Return the best prefill/decode deployments, best first.

    `workload` is the whole fleet's: its clients, or its request rate.
    """
    if not sides.ratios or not can_disaggregate(sides.decode):
        return []
    splits = itertools.islice(_splits(sides, workload, slos, mtp=mtp), REPLAYED)
    finalists = [_replayed(sides, split, workload, slos) for split in splits]
    return sorted(finalists, key=lambda c: (fleet_key(c, workload, slos), -c.output_tok_s))


def fleet_key(candidate: Candidate, workload: Workload, slos: tuple[Slo, ...]) -> float:
    """Return by how much (log) the fleet misses its worst limit; 0 when it keeps all."""
    each = replace(workload, concurrency=max(1, -(-workload.concurrency // candidate.servers)))
    return final_key(candidate.prediction, each, slos)[0]


def _splits(sides: Sides, workload: Workload, slos: tuple[Slo, ...], *, mtp: bool) -> Iterator[_Split]:
    """Yield the best deployment of each ratio, with and without MTP, best first in closed form."""
    context, before = sides.decode, sides.prefill
    depths = MTP_STEPS if mtp and context.arch.has_mtp else (0,)
    prefill = prefill_servers(before, list(layouts(before.machine, before.version)), workload, depths)
    prefill_count = {decode: count for count, decode in sides.ratios}
    shapes = list(layouts(context.machine, context.version))
    table = decode_table(context, shapes, workload, depths=tuple(prefill), counts=tuple(prefill_count))
    if table is None:
        return
    isl = workload.isl.mean
    rates = {depth: prefill_rate(server.model, isl) for depth, server in prefill.items()}
    one = np.array([rates[int(depth)] for depth in table.depth])
    upstream = Upstream(
        most_requests_s=one * np.array([prefill_count[int(count)] for count in table.servers]),
        before_s=1.0 / one + _transfer(sides).seconds(round(isl)),
    )
    seen = set()
    for row in _ordered(solve_rates(context, table, upstream, workload), slos):
        kind = (int(table.servers[row]), bool(table.depth[row]))
        if kind in seen or not is_allowed(context, table.configs[row]):
            continue
        seen.add(kind)  # ten layouts of one ratio would tell a reader less
        yield _split(context, prefill[int(table.depth[row])], table, row, prefill_count[kind[0]])


def _split(context: Context, prefill: RoleServer, table: DecodeTable, row: int, prefill_count: int) -> _Split:
    config, count = table.configs[row], int(table.servers[row])
    batch = int(table.table.most_running[row])
    return _Split(
        prefill=prefill,
        prefill_servers=prefill_count,
        decode=decode_server(context, config, batch=batch),
        decode_servers=count,
    )


def _ordered(rates: PoolRates, slos: tuple[Slo, ...]) -> list[int]:
    """Return the rows, best first: the least excess over the limits (log, of the means), then the most requests."""
    seconds: dict[Metric, Array] = {Metric.TTFT: rates.ttft_s, Metric.TPOT: rates.tpot_s, Metric.E2E: rates.e2e_s}
    worst = np.zeros_like(rates.requests_s)
    for slo in slos:
        worst = np.maximum(worst, np.log(seconds[slo.metric] * 1e3 / slo.limit_ms))
    order: list[int] = np.lexsort((-rates.requests_s, worst)).tolist()
    return order


def _transfer(sides: Sides) -> Transfer:
    """Return the transfer between the two machines: the slower network decides."""
    return min(transfer_of(sides.prefill), transfer_of(sides.decode), key=lambda transfer: transfer.bytes_s)


def _replayed(sides: Sides, split: _Split, workload: Workload, slos: tuple[Slo, ...], seed: int = 0) -> Candidate:
    """Replay a deployment and return it as a candidate: the decode servers, and those that prefill for them."""
    context = sides.decode
    count = min(MOST_REQUESTS, max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * workload.concurrency))
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
    load = FleetLoad(
        isl=isl, osl=osl, concurrency=workload.concurrency, arrivals_s=arrivals_s, apart_s=APART_S
    )  # fmt: skip
    wave = count // REQUESTS_PER_CLIENT
    played = replay_fleet(model, load, measure_from=wave, measure_to=count - wave)
    if arrivals_s is None:  # Little's law, as for a single server: all clients always have one request on its way
        rate = workload.concurrency * float(played.seen.osl.sum() / played.seen.e2e_s.sum())
        played = replace(played, seen=replace(played.seen, output_tok_s=rate))
    config, prediction = split.decode.config, _prediction(context, split, workload, played)
    return Candidate(
        config=config,
        prediction=prediction,
        ledger=ledger_of(split.decode.filled, table_of([config]), 0),
        misses=missed(slos, prediction),
        servers=split.decode_servers,
        prefill=PrefillSide(config=split.prefill.config, servers=split.prefill_servers),
    )


def _prediction(context: Context, split: _Split, workload: Workload, played: FleetReplay) -> Prediction:
    """Return what clients of the fleet see; rates and running requests are those of one decode server."""
    each = replace(workload, concurrency=max(1, round(played.decode_batch)), request_rate=None)
    found = prediction_of(context, split.decode.config, each, filled=split.decode.filled, played=played.seen)
    share = 1.0 / split.decode_servers
    return replace(
        found,
        output_tok_s=found.output_tok_s * share,
        total_tok_s=found.total_tok_s * share,
        request_rate=found.request_rate * share,
        running_requests=played.decode_batch,
        stall_ms=0.0,
        limiting=LIMITS[played.limit],
        band={**found.band, "output_tok_s": _scaled(found.band["output_tok_s"], share)},
        warnings=(*found.warnings, transfer_note(context)),
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
