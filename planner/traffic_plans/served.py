"""A trace on servers of one configuration: latencies, hits, and what every minute saw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.config import ServerConfig
from models.layout import Array, table_of
from models.serving.estimate import Context, limits_of, statistics_ms
from models.serving.step_times import StepTimes
from models.serving.trace_replay import Routing, TraceReplay, TraceServers, replay_trace
from models.traffic.trace import Trace
from models.workload import Metric, Slo

MINUTE_S = 60.0
# A p99 of fewer requests than this says nothing of a minute.
FEW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """What was sent in one minute and what became of it; `waiting` is the mean number without a first token."""

    minute: int
    requests: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    waiting: float
    hit_rate: float
    missed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTrace:
    """A trace on `servers` servers: latencies in ms by statistic, rates in tokens or requests per second, all together.

    `goodput_rps`: requests per second whose own latencies keep every SLO's limit, whatever its statistic.
    """

    servers: int
    routing: Routing
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    output_tok_s: float
    goodput_rps: float
    hit_rate: float
    mean_running: float
    in_flight_p99: float
    retractions: int
    minutes: tuple[Minute, ...]
    replay: TraceReplay

    def excess(self, slos: tuple[Slo, ...]) -> float:
        """Return log(latency / limit) of the worst SLO; at most 0 where all are kept."""
        return max((slo.excess(self) for slo in slos), default=0.0)


def serve(
    context: Context,
    config: ServerConfig,
    trace: Trace,
    servers: TraceServers,
    slos: tuple[Slo, ...] = (),
) -> ServedTrace:
    """Replay a trace on servers of a resolved configuration; `servers` says how many, with what cache and router."""
    replay = replay_trace(trace, servers)
    broken = _broken(replay, slos)
    elapsed_s = max(float(replay.end_s.max()), 1e-9)
    return ServedTrace(
        servers=servers.count,
        routing=servers.routing,
        ttft_ms=statistics_ms(replay.ttft_s),
        tpot_ms=statistics_ms(replay.tpot_s[replay.osl > 1] if (replay.osl > 1).any() else np.zeros(1)),
        e2e_ms=statistics_ms(replay.e2e_s),
        output_tok_s=float(replay.osl.sum()) / elapsed_s,
        goodput_rps=float((~broken).sum()) / elapsed_s,
        hit_rate=replay.hit_rate,
        mean_running=replay.mean_running,
        in_flight_p99=_in_flight_p99(replay),
        retractions=replay.retractions,
        minutes=_minutes(replay, broken),
        replay=replay,
    )


def servers_of(context: Context, config: ServerConfig, requests: int) -> TraceServers:
    """Return one server of a resolved configuration as the replay knows it."""
    table = table_of([config])
    kv_tokens = float(context.memory(table).kv_tokens[0])
    largest = int(min(requests, float(table.most_running[0])))
    return TraceServers(
        times=StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest),
        limits=limits_of(config, table, kv_tokens),
        cache=not config.disable_radix_cache,
        page=config.page_size or 1,
    )


def on(servers: TraceServers, count: int, *, cache: bool = True, routing: Routing | None = None) -> TraceServers:
    """Return so many of them; without `cache` none keeps prefixes, as with --disable-radix-cache.

    A router that knows prefixes stands before caches, one that counts requests before servers without.
    """
    cache = servers.cache and cache
    way = routing or (Routing.CACHE_AWARE if cache else Routing.LEAST_REQUESTS)
    return replace(servers, count=count, cache=cache, routing=way)


def _broken(replay: TraceReplay, slos: tuple[Slo, ...]) -> npt.NDArray[np.bool_]:
    """Return which requests are themselves above a limit."""
    by_metric = {Metric.TTFT: replay.ttft_s, Metric.TPOT: replay.tpot_s, Metric.E2E: replay.e2e_s}
    broken = np.zeros(len(replay.isl), dtype=bool)
    for slo in slos:
        broken |= by_metric[slo.metric] * 1e3 > slo.limit_ms
    return broken


def _in_flight_p99(replay: TraceReplay) -> float:
    """Return the requests in flight that are exceeded in 1 % of the time."""
    times = np.concatenate([replay.sent_s, replay.end_s])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([np.ones(len(replay.sent_s)), -np.ones(len(replay.end_s))])[order]
    level, spans = np.cumsum(steps)[:-1], np.diff(times[order])
    by_level = np.argsort(level, kind="stable")
    share = np.cumsum(spans[by_level]) / max(float(spans.sum()), 1e-12)
    return float(level[by_level][min(int(np.searchsorted(share, 0.99)), len(level) - 1)])


def _minutes(replay: TraceReplay, broken: npt.NDArray[np.bool_]) -> tuple[Minute, ...]:
    minute = (replay.sent_s / MINUTE_S).astype(np.int64)
    waiting = _waiting(replay.sent_s, replay.first_s)
    rows = []
    for number in np.unique(minute).tolist():
        in_minute = minute == number
        ttft_ms = replay.ttft_s[in_minute] * 1e3
        rows.append(
            Minute(
                minute=number,
                requests=int(in_minute.sum()),
                ttft_p50_ms=float(np.median(ttft_ms)),
                ttft_p99_ms=float(np.percentile(ttft_ms, 99) if len(ttft_ms) >= FEW else ttft_ms.max()),
                tpot_mean_ms=float(replay.tpot_s[in_minute].mean() * 1e3),
                waiting=float(waiting[number]),
                hit_rate=float(replay.cached[in_minute].sum() / max(replay.isl[in_minute].sum(), 1.0)),
                missed_share=float(broken[in_minute].mean()),
            )
        )
    return tuple(rows)


def _waiting(sent_s: Array, first_s: Array) -> Array:
    """Return the mean number of requests without a first token, minute by minute: the seconds they waited in each."""
    count = math.ceil(float(first_s.max()) / MINUTE_S) + 1
    edges = np.arange(count + 1) * MINUTE_S
    # seconds waited before an edge, over all requests
    before = np.array([np.clip(edge - sent_s, 0.0, first_s - sent_s).sum() for edge in edges])
    return np.asarray(np.diff(before) / MINUTE_S)
