"""Observed: the traffic a server has had and how it served it, in the words of its metrics, whatever its release."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.workload import Lengths, Statistic
from tuner.scrape.samples import Buckets, ScrapeWindow

# Requests that must have finished in a window before its means are taken for the traffic's.
ENOUGH_REQUESTS = 8
PERCENTILES = {Statistic.P50: 0.5, Statistic.P90: 0.9, Statistic.P95: 0.95, Statistic.P99: 0.99}
# A histogram's buckets are wide: only a spread beyond their own width is one.
BUCKETS_OWN_SPREAD = 0.25
# Half the width of the lengths' law over its mean where buckets show none: that of published benchmarks.
LEAST_HALF = 1.0 / 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen. Latencies in ms by statistic; rates per second; None where the server does not say.

    `basis`: "window", or "since start" where the window held too few requests. `cached_share` is of prompt tokens,
    `graph_share` of decode passes run in CUDA graphs, `sync_wait_ms` the mean wait of every attention-DP rank for the
    others before a step, `estimated` that nothing runs now and the load is that of its past, `accept_length` tokens a
    decode step yields, `queue_growth` requests per second.
    """

    basis: str
    seconds: float | None
    requests: float
    request_rate: float | None
    isl: float | None
    osl: float | None
    isl_spread: float | None
    osl_spread: float | None
    output_tok_s: float | None
    cached_share: float | None
    running: float | None
    waiting: float | None
    in_flight: float | None
    estimated: bool
    queue_growth: float | None
    running_by_rank: dict[int, float]
    kv_usage: float | None
    accept_length: float | None
    retractions: float
    graph_share: float | None
    passes: float | None
    balancedness: float | None
    sync_wait_ms: dict[int, float]
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    queue_ms: float | None
    spreads: dict[str, Buckets] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Nothing ran and nothing finished."""
        return not self.requests and not self.running

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        names = [name for name in self.__slots__ if name != "spreads"]
        return {name: getattr(self, name) for name in names}


def observe(window: ScrapeWindow) -> Observed:
    """Return what a window of scrapes says; everything since the start where too few requests ended in it."""
    finished = window.increase("num_requests_total") or 0.0
    counted = window if finished >= ENOUGH_REQUESTS or window.before is None else window.since_start()
    spreads, seconds = _spreads(counted), window.seconds
    requests = counted.increase("num_requests_total") or 0.0
    prompt, generated = counted.increase("prompt_tokens_total"), counted.increase("generation_tokens_total")
    realtime = window.increase("realtime_tokens_total", mode="decode")
    generated_tokens = realtime if realtime is not None else window.increase("generation_tokens_total")
    accepted = _accepted(counted, generated)
    queue_s = _mean(counted.spread("queue_time_seconds"))
    load = _load(window, counted, spreads, _Pace(made=generated_tokens, accepted=accepted, queue_s=queue_s))
    return Observed(
        basis="window" if counted.before is not None else "since start",
        seconds=seconds,
        requests=requests,
        request_rate=finished / seconds if seconds else None,
        isl=prompt / requests if requests and prompt is not None else None,
        osl=generated / requests if requests and generated is not None else None,
        isl_spread=_spread_of(spreads.get("isl")),
        osl_spread=_spread_of(spreads.get("osl")),
        output_tok_s=generated_tokens / seconds
        if seconds and generated_tokens is not None
        else window.level("gen_throughput"),
        cached_share=_cached(counted, prompt),
        running=load.running,
        waiting=load.waiting,
        in_flight=load.in_flight,
        estimated=load.estimated,
        queue_growth=_growth(window),
        running_by_rank=window.after.by_rank("num_running_reqs"),
        kv_usage=window.fullest("full_token_usage" if "full_token_usage" in window.after else "token_usage"),
        accept_length=accepted,
        retractions=_retractions(counted),
        graph_share=_graph_share(counted),
        passes=counted.increase("cuda_graph_passes_total"),
        balancedness=_mean(counted.spread("eplb_balancedness")),
        sync_wait_ms=_sync_waits(counted),
        ttft_ms=_statistics(spreads.get("ttft")),
        tpot_ms=_statistics(spreads.get("tpot")),
        e2e_ms=_statistics(spreads.get("e2e")),
        queue_ms=_milliseconds(queue_s),
        spreads=spreads,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """Tokens generated in the window, tokens a decode step yields, mean time in the queue."""

    made: float | None
    accepted: float | None
    queue_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """Requests that ran, waited, and were on their way, on average."""

    running: float | None
    waiting: float | None
    in_flight: float | None
    estimated: bool = False


def _load(window: ScrapeWindow, counted: ScrapeWindow, spreads: dict[str, Buckets], pace: _Pace) -> _Load:
    """Return the load: by Little's law in a window of several stays, else what the gauges say.

    Of a server where nothing runs now, the mean batch of its decode passes tells what ran while it did.
    """
    running, waiting = window.level("num_running_reqs"), window.level("num_queue_reqs")
    levels = None if running is None else running + (waiting or 0.0)
    seconds, e2e, osl = window.seconds, spreads.get("e2e"), spreads.get("osl")
    osl_mean = osl.mean if osl is not None else _osl(counted)
    if seconds and pace.made and e2e is not None and osl_mean and e2e.mean < seconds:
        stays = pace.made / max(1.0, osl_mean - 1.0)
        return _Load(running=running, waiting=waiting, in_flight=stays * e2e.mean / seconds)
    batch = _mean_batch(counted, pace.accepted) if not levels else None
    if batch is None or e2e is None or e2e.mean <= 0:
        return _Load(running=running, waiting=waiting, in_flight=levels)
    served_s = max(0.1 * e2e.mean, e2e.mean - (pace.queue_s or 0.0))
    in_flight = batch * e2e.mean / served_s
    return _Load(running=batch, waiting=in_flight - batch, in_flight=in_flight, estimated=True)


def _osl(window: ScrapeWindow) -> float | None:
    requests, generated_tokens = window.increase("num_requests_total"), window.increase("generation_tokens_total")
    return generated_tokens / requests if requests and generated_tokens else None


def _mean_batch(window: ScrapeWindow, accepted: float | None) -> float | None:
    """Return the requests in a decode pass over all ranks, on average: tokens over passes of one rank."""
    tokens = window.increase("realtime_tokens_total", mode="decode")
    passes = [
        window.increase("cuda_graph_passes_total", mode=mode) or 0.0 for mode in ("decode_cuda_graph", "decode_none")
    ]
    ranks = max(1, len(window.after.by_rank("realtime_tokens_total")))
    if not tokens or not sum(passes):
        return None
    return tokens / (sum(passes) / ranks) / (accepted or 1.0)


# What histograms of each quantity are called, newest release first.
HISTOGRAMS = {
    "ttft": ("time_to_first_token_seconds",),
    "tpot": ("request_time_per_output_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds"),
    "e2e": ("e2e_request_latency_seconds",),
    "isl": ("prompt_tokens_histogram",),
    "osl": ("generation_tokens_histogram",),
}


def _spreads(window: ScrapeWindow) -> dict[str, Buckets]:
    spreads = {}
    for quantity, names in HISTOGRAMS.items():
        spread = next((spread for name in names if (spread := window.spread(name)) is not None), None)
        if spread is not None:
            spreads[quantity] = spread
    return spreads


def _statistics(spread: Buckets | None) -> dict[str, float]:
    """Return mean and percentiles in ms; percentiles beyond the last bucket are left out."""
    if spread is None:
        return {}
    quantiles = {str(name): spread.quantile(share) for name, share in PERCENTILES.items()}
    percentiles = {name: value * 1e3 for name, value in quantiles.items() if value is not None}
    return {str(Statistic.MEAN): spread.mean * 1e3, **percentiles}


def _spread_of(spread: Buckets | None) -> float | None:
    """Return the standard deviation over the mean."""
    if spread is None or spread.widest is None or spread.mean <= 0:
        return None
    return spread.widest / spread.mean


def _mean(spread: Buckets | None) -> float | None:
    return None if spread is None else spread.mean


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _cached(window: ScrapeWindow, prompt: float | None) -> float | None:
    cached = window.increase("cached_tokens_total")
    if prompt and (cached is not None or "realtime_tokens_total" in window.after):
        return min(1.0, (cached or 0.0) / prompt)
    return window.level("cache_hit_rate")


def _growth(window: ScrapeWindow) -> float | None:
    """Return by how much the requests in the queue grow per second."""
    if window.before is None or not window.seconds:
        return None
    before, after = window.before.total("num_queue_reqs"), window.after.total("num_queue_reqs")
    return None if before is None or after is None else (after - before) / window.seconds


def _accepted(window: ScrapeWindow, generated: float | None) -> float | None:
    calls = window.increase("spec_verify_calls_total")
    if calls and generated:
        return max(1.0, generated / calls)
    ranks = [value for value in (window.after.series.get("spec_accept_length") or {}).values() if value >= 1.0]
    return sum(ranks) / len(ranks) if ranks else None


def _retractions(window: ScrapeWindow) -> float:
    counted = window.increase("num_retracted_requests_total")
    if counted is None and "total_retracted_reqs" in window.after:
        counted = window.increase("total_retracted_reqs")
    return counted if counted is not None else window.level("num_retracted_reqs") or 0.0


def _graph_share(window: ScrapeWindow) -> float | None:
    graphs = window.increase("cuda_graph_passes_total", mode="decode_cuda_graph")
    without = window.increase("cuda_graph_passes_total", mode="decode_none")
    total = (graphs or 0.0) + (without or 0.0)
    if total:
        return (graphs or 0.0) / total
    return window.level("is_cuda_graph") if "cuda_graph_passes_total" not in window.after and window.after.total(
        "num_running_reqs") else None  # fmt: skip


def _sync_waits(window: ScrapeWindow) -> dict[int, float]:
    counts = window.increase_by_rank("dp_attention_sync_wait_seconds_count")
    sums = window.increase_by_rank("dp_attention_sync_wait_seconds_sum")
    return {rank: sums.get(rank, 0.0) / count * 1e3 for rank, count in sorted(counts.items()) if count}


def lengths(mean: float, spread: float | None) -> Lengths:
    """Return a uniform law of this mean, as wide as was seen, and never fixed: requests of one length march in step,
    which traffic does not.
    """
    # a uniform law on [r L, L] has the mean L (1 + r) / 2 and the deviation L (1 - r) / sqrt(12)
    half = LEAST_HALF if spread is None or spread <= BUCKETS_OWN_SPREAD else min(0.98, spread * 3.0**0.5)
    return Lengths(nominal=max(1, round(mean * (1.0 + half))), range_ratio=(1.0 - half) / (1.0 + half))
