"""One prefill/decode fleet, played: its servers' models, the replay of a load on it, and what its clients see."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.costs.memory import ledger_of
from models.layout import table_of
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
from models.workload import Slo, Workload, missed
from planner.fleets.role_servers import PrefillRoleServer, RoleServer
from planner.plans.candidates import Candidate, PrefillSide
from planner.plans.search import misses_of

# Requests per client replayed, and the most of them.
REQUESTS_PER_CLIENT = 5
LEAST_REQUESTS, MOST_REQUESTS = 1000, 12_000
# Of a crowd that stands in line at a fleet's limit: it is the same from wave to wave only after the first.
MOST_OF_A_CROWD = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What prefill and decode servers stand on, a server's machine each, and how many of both there may be.

    Where it is known otherwise `transfer` is what moving a request's KV cache costs.
    """

    prefill: Context
    decode: Context
    ratios: tuple[tuple[int, int], ...]
    transfer: Transfer | None = None

    @property
    def prefill_count(self) -> dict[int, int]:
        """Prefill servers beside each number of decode servers."""
        return {decode: prefill for prefill, decode in self.ratios}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSplit:
    """One deployment: a server of each role and how many of it."""

    prefill: PrefillRoleServer
    prefill_servers: int
    decode: RoleServer
    decode_servers: int


def transfer_between(sides: Sides) -> Transfer:
    """Return the transfer between the two machines: the slower network decides."""
    if sides.transfer is not None:
        return sides.transfer
    return min(transfer_of(sides.prefill), transfer_of(sides.decode), key=lambda transfer: transfer.bytes_s)


def replayed(sides: Sides, split: RoleSplit, workload: Workload, slos: tuple[Slo, ...]) -> Candidate:
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


def _predicted(sides: Sides, split: RoleSplit, workload: Workload) -> Prediction:
    """Predict the fleet; where arrivals are more than it answers, at its limit, with a queue that grows."""
    played, rate = played_split(sides, split, workload, requests_played(workload)), workload.request_rate
    if rate is None:
        return _prediction(sides.decode, split, workload, played)
    flight = in_flight(played.seen)
    if flight.grows or too_short(played.seen, rate):
        runnable = split.decode_servers * max(1.0, played.decode_batch)
        crowd = replace(workload, concurrency=max(1, round(QUEUED * runnable)), request_rate=None)
        saturated = played_split(sides, split, crowd, min(MOST_OF_A_CROWD, REQUESTS_PER_CLIENT * crowd.concurrency))
        at_limit = _prediction(sides.decode, split, crowd, saturated)
        if flight.grows or at_limit.request_rate * split.decode_servers < LEAST_SERVED * rate:
            return without_end(at_limit, rate / split.decode_servers)
    steady = replace(played, seen=replace(played.seen, output_tok_s=rate * workload.osl.mean))
    return replace(_prediction(sides.decode, split, workload, steady), in_flight=flight)


def requests_played(workload: Workload) -> int:
    """Return how many requests of a load are played."""
    return min(MOST_REQUESTS, max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * workload.concurrency))


def played_split(sides: Sides, split: RoleSplit, workload: Workload, count: int, seed: int = 0) -> FleetReplay:
    """Replay `count` requests of the load: the first and the last fifth are not in the result."""
    rng = np.random.default_rng(seed)
    isl, osl = workload.isl.sample(count, rng), workload.osl.sample(count, rng)
    model = FleetModel(
        prefill=split.prefill.model,
        prefill_servers=split.prefill_servers,
        decode=split.decode.model,
        decode_servers=split.decode_servers,
        transfer=transfer_between(sides),
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


def _prediction(context: Context, split: RoleSplit, workload: Workload, played: FleetReplay) -> Prediction:
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
