"""Prefill/decode fleets: every ratio of servers and every layout of a role, by rates first, then by replay.

In closed form the rate X of requests per second follows from X x (prefill + transfer + decode) = clients, with a decode
step that grows with the batch it holds, and X no more than the prefill servers give. The best few are replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.config import ServerConfig, Speculative
from models.costs.memory import GOOD_FREE_GIB, Memory, ledger_of
from models.layout import table_of
from models.serving.estimate import Context, Prediction, limits_of, prediction_of
from models.serving.fleet_replay import FleetLoad, FleetModel, FleetReplay, Limit, ServerModel, Transfer, replay_fleet
from models.serving.step_times import StepTimes
from models.workload import Slo, Workload, missed
from planner.plans.search import Candidate, PrefillSide, final_key
from planner.plans.space import FRACTIONS, MTP_STEPS, graph_size, layouts
from planner.rules import Question, first_error
from planner.sglang.flags import flags_of
from planner.sglang.resolver import resolve

ROLE_FLAG = "disaggregation_mode"
# What the transfer is taken to cost where nothing was measured: one InfiniBand NDR adapter a GPU at half its line rate
# (reports call hundreds of MB/s a rank normal on untuned fabrics), and the handshakes of a request.
TRANSFER_BYTES_S = 25e9
TRANSFER_LATENCY_S = 0.05
# Chunks tried on prefill servers: each pass is one chunk, larger ones fill the GEMMs, smaller ones share a pass.
PREFILL_CHUNKS = (8192, 16384, 32768)
# Prefill servers never run beyond this share of their rate without a queue that grows.
MOST_PREFILL_SHARE = 0.97
# Deployments replayed event by event, requests per client replayed, and the most of them.
REPLAYED = 3
REQUESTS_PER_CLIENT = 5
MOST_REQUESTS = 6000
FIXED_POINT_STEPS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """One server of a role: configuration, ledger and step times."""

    config: ServerConfig
    filled: Memory
    model: ServerModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roles:
    """One deployment: a server of each role and how many of it."""

    prefill: _Server
    prefill_servers: int
    decode: _Server
    decode_servers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split(_Roles):
    """One deployment in closed form: the requests per second it completes, and latencies in seconds."""

    requests_s: float
    tpot_s: float
    ttft_s: float
    e2e_s: float


def can_disaggregate(context: Context) -> bool:
    """Say whether the release has prefill and decode servers."""
    return ROLE_FLAG in flags_of(context.version).by_dest


def disaggregated(
    context: Context, servers: int, workload: Workload, slos: tuple[Slo, ...], *, mtp: bool
) -> list[Candidate]:
    """Return the best prefill/decode deployments of `servers` servers, best first.

    `context` is that of one server's machine; `workload` is the whole fleet's: its clients, or its request rate.
    """
    if servers < 2 or not can_disaggregate(context):
        return []
    rows = sorted(_splits(context, servers, workload, mtp), key=lambda split: _closed_key(split, slos))
    finalists = [_replayed(context, split, workload, slos) for split in _different(rows)[:REPLAYED]]
    return sorted(finalists, key=lambda c: (fleet_key(c, workload, slos), -c.output_tok_s))


def fleet_key(candidate: Candidate, workload: Workload, slos: tuple[Slo, ...]) -> float:
    """Return by how much (log) the fleet misses its worst limit; 0 when it keeps all."""
    each = replace(workload, concurrency=max(1, -(-workload.concurrency // candidate.servers)))
    return final_key(candidate.prediction, each, slos)[0]


def _different(rows: Sequence[_Split]) -> list[_Split]:
    """Keep the best of each ratio: ten layouts of one ratio would tell a reader less."""
    kept: dict[tuple[int, bool], _Split] = {}
    for row in rows:
        kept.setdefault((row.prefill_servers, row.decode.config.speculative is not None), row)
    return list(kept.values())


def _splits(context: Context, servers: int, workload: Workload, mtp: bool) -> Iterator[_Split]:
    depths = MTP_STEPS if mtp and context.arch.has_mtp else (0,)
    shapes = list(layouts(context.machine, context.version))
    for depth in depths:
        prefill = _best_prefill(context, shapes, workload, depth)
        if prefill is None:
            continue
        for prefill_servers in range(1, servers):
            decode_servers = servers - prefill_servers
            for shape in shapes:
                decode = _decode_server(context, shape, workload, depth, decode_servers)
                if decode is not None:
                    roles = _Roles(
                        prefill=prefill,
                        prefill_servers=prefill_servers,
                        decode=decode,
                        decode_servers=decode_servers,
                    )
                    yield _solved(context, roles, workload)


def _with_depth(shape: ServerConfig, depth: int) -> ServerConfig:
    return replace(shape, speculative=Speculative.chain(depth) if depth else None)


def _best_prefill(context: Context, shapes: Sequence[ServerConfig], workload: Workload, depth: int) -> _Server | None:
    """Return the prefill server that prefills most requests per second."""
    found = [
        server
        for shape in shapes
        if shape.pp_size == 1
        for chunk in PREFILL_CHUNKS
        if (server := _prefill_server(context, _with_depth(shape, depth), chunk))
    ]
    return max(found, key=lambda server: prefill_rate(server.model, workload.isl.mean), default=None)


def _prefill_server(context: Context, shape: ServerConfig, chunk: int) -> _Server | None:
    resolved = resolve(shape.with_flags(disaggregation_mode="prefill"), context.arch, context.machine, context.version)
    config = replace(resolved.config, chunked_prefill_size=chunk, max_running_requests=shape.attn_dp_size * 16)
    return _fitted(context, config, batch=1)


def _decode_server(
    context: Context, shape: ServerConfig, workload: Workload, depth: int, servers: int
) -> _Server | None:
    """Return a decode server whose caps and graphs hold its share of all clients."""
    each = -(-workload.concurrency // servers)
    per_rank = -(-each // shape.attn_dp_size)
    typed = _with_depth(shape, depth).with_flags(disaggregation_mode="decode")
    resolved = resolve(typed, context.arch, context.machine, context.version).config
    config = replace(
        resolved,
        max_running_requests=per_rank * shape.attn_dp_size,
        cuda_graph_max_bs_decode=graph_size(per_rank),
    )
    return _fitted(context, config, batch=each)


def _fitted(context: Context, config: ServerConfig, *, batch: int) -> _Server | None:
    """Return the configuration with the largest memory fraction that keeps enough free, None where none does."""
    broken = first_error(Question(config=config, arch=context.arch, machine=context.machine, version=context.version))
    if broken is not None:
        return None
    configs = [replace(config, mem_fraction_static=fraction) for fraction in FRACTIONS]
    filled = context.memory(table_of(configs))
    fits = np.flatnonzero((filled.free >= GOOD_FREE_GIB) & (filled.kv_tokens_per_rank > 0))
    if not len(fits):
        return None
    chosen = configs[int(fits[-1])]
    table = table_of([chosen])
    alone = context.memory(table)
    limits = limits_of(chosen, table, float(alone.kv_tokens[0]))
    largest = int(max(1, min(batch, limits.max_running)))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    return _Server(config=chosen, filled=alone, model=ServerModel(times=times, limits=limits))


def prefill_rate(server: ServerModel, isl: float) -> float:
    """Return the requests of `isl` tokens one prefill server completes per second with full passes."""
    chunk = float(server.limits.chunk)
    together = max(1, int(chunk // isl))
    if isl <= chunk:
        return together / server.times.prefill_s(together, together * isl, together * 0.5 * isl * isl)
    seconds, done = 0.0, 0.0
    while done < isl:
        take = min(chunk, isl - done)
        seconds += server.times.prefill_s(1, take, take * (0.5 * take + done))
        done += take
    return 1.0 / seconds


def transfer_of(context: Context) -> Transfer:
    """Return what moving one request's KV cache is taken to cost on this machine."""
    return Transfer(
        latency_s=TRANSFER_LATENCY_S,
        bytes_per_token=context.arch.kv_bytes_per_token(),
        bytes_s=min(TRANSFER_BYTES_S, max(context.machine.network_bytes_s, 1e9)),
    )


def _solved(context: Context, roles: _Roles, workload: Workload) -> _Split:
    """Solve the fixed point of rates: the X whose requests in flight are the clients, within what each role gives."""
    isl, osl = workload.isl.mean, workload.osl.mean
    rate = prefill_rate(roles.prefill.model, isl)
    before_s = 1.0 / rate + transfer_of(context).seconds(round(isl))
    flow = _Decode(
        server=roles.decode.model, servers=roles.decode_servers, context_tokens=isl + 0.5 * osl, isl=isl, osl=osl
    )
    most = min(MOST_PREFILL_SHARE * rate * roles.prefill_servers, flow.most_requests_s)
    wanted = workload.request_rate or _rate_of_clients(flow, before_s, float(workload.concurrency), most)
    served = min(wanted, most)
    tpot_s = flow.tpot_s(flow.batch(served))
    waiting_s = 0.0
    if workload.request_rate is None:
        waiting_s = max(0.0, workload.concurrency / served - before_s - osl * tpot_s)
    return _Split(
        prefill=roles.prefill,
        prefill_servers=roles.prefill_servers,
        decode=roles.decode,
        decode_servers=roles.decode_servers,
        requests_s=served,
        tpot_s=tpot_s,
        ttft_s=before_s + waiting_s,
        e2e_s=before_s + waiting_s + osl * tpot_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decode:
    """The decode pool as a whole, in means: TPOT at a batch, and the batch that a rate keeps busy."""

    server: ServerModel
    servers: int
    context_tokens: float
    isl: float
    osl: float

    @property
    def cap(self) -> float:
        """Most requests that decode at once, by slots and by KV cache."""
        limits = self.server.limits
        return self.servers * min(float(limits.max_running), limits.kv_tokens / (self.isl + self.osl))

    @property
    def most_requests_s(self) -> float:
        """Requests per second with every slot taken."""
        return self.cap / (self.osl * self.tpot_s(self.cap))

    def tpot_s(self, batch: float) -> float:
        """Seconds per output token with `batch` requests on all servers together."""
        times = self.server.times
        each = int(max(1, min(math.ceil(batch / self.servers), len(times.base_s) - 1)))
        return times.decode_s(each, self.context_tokens) / times.accepted

    def batch(self, requests_s: float) -> float:
        """Return the requests decoding at a rate: the smallest fixed point of batch = rate x osl x TPOT(batch)."""
        batch = 1.0
        for _ in range(FIXED_POINT_STEPS):
            batch = min(self.cap, max(1.0, requests_s * self.osl * self.tpot_s(batch)))
        return batch


def _rate_of_clients(flow: _Decode, before_s: float, clients: float, most: float) -> float:
    """Return the requests per second at which `clients` are in flight, `most` where even that leaves some waiting."""
    low, high = 0.0, most
    if most * before_s + flow.batch(most) <= clients:
        return most
    for _ in range(FIXED_POINT_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle * before_s + flow.batch(middle) < clients else (low, middle)
    return max(low, 1e-9)


def _closed_key(split: _Split, slos: tuple[Slo, ...]) -> tuple[float, float]:
    seconds = {"ttft": split.ttft_s, "tpot": split.tpot_s, "e2e": split.e2e_s}
    worst = max((math.log(seconds[str(slo.metric)] * 1e3 / slo.limit_ms) for slo in slos), default=0.0)
    return (max(0.0, worst), -split.requests_s)


def _replayed(context: Context, split: _Split, workload: Workload, slos: tuple[Slo, ...], seed: int = 0) -> Candidate:
    """Replay a deployment and return it as a candidate: the decode servers, and those that prefill for them."""
    count = min(MOST_REQUESTS, max(MOST_REQUESTS // 6, REQUESTS_PER_CLIENT * workload.concurrency))
    rng = np.random.default_rng(seed)
    isl, osl = workload.isl.sample(count, rng), workload.osl.sample(count, rng)
    model = FleetModel(
        prefill=split.prefill.model,
        prefill_servers=split.prefill_servers,
        decode=split.decode.model,
        decode_servers=split.decode_servers,
        transfer=transfer_of(context),
    )
    arrivals_s = None
    if workload.request_rate is not None:
        arrivals_s = np.cumsum(rng.exponential(1.0 / workload.request_rate, size=count))
    load = FleetLoad(isl=isl, osl=osl, concurrency=workload.concurrency, arrivals_s=arrivals_s)
    played = replay_fleet(model, load, measure_from=count // REQUESTS_PER_CLIENT)
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
        warnings=(*found.warnings, PD_WARNING),
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
PD_WARNING = "prefill/decode: the KV transfer is assumed at 25 GB/s per request with 50 ms of handshakes, not measured"
