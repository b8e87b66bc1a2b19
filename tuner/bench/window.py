"""Turns the workers' records into figures of a steady-state window, with bootstrap intervals."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.layout import Array
from models.workload import Slo, Statistic
from tuner.bench.http_stream import BIN_S
from tuner.bench.requests import RequestOutcome, Seen

RESAMPLES = 400
# Blocks of the window that are resampled for the interval of a rate: longer than a request's own rhythm would need
# more of them than a short window has.
BLOCKS = 16
STATISTICS = {Statistic.P50: 50.0, Statistic.P90: 90.0, Statistic.P95: 95.0, Statistic.P99: 99.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A latency in ms by statistic, and the 95 % bootstrap interval of its mean; empty without requests."""

    by: dict[str, float]
    mean_interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """What the load generator itself was like: lateness in ms, and its use of a core and in all."""

    sent_late_p99_ms: float
    loop_lag_mean_ms: float
    loop_lag_p99_ms: float
    cpu_share: float
    cpu_s_per_1000_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What came back between two instants (CLOCK_MONOTONIC seconds). Rates in tokens per second.

    `unended` requests of an open loop were due in the window and had not come to their end when the time box was.
    """

    start: float
    end: float
    open_loop: bool
    unended: int
    requests: int
    errors: int
    error_example: str
    output_tok_s: float
    output_tok_s_interval: tuple[float, float]
    total_tok_s: float
    request_rate: float
    goodput_rps: float
    in_flight: float
    ttft: Spread
    tpot: Spread
    e2e: Spread
    chunk_gap: Spread
    tokens_per_chunk: float
    cached_share: float
    wrong_lengths: float
    generator: Generator
    drift: float
    drift_error: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def has(self, request: Seen) -> bool:
        """Say whether the latencies of a request count here."""
        return _counts(request, self.start, self.end, open_loop=self.open_loop)


def _counts(request: Seen, start: float, end: float, *, open_loop: bool) -> bool:
    """A closed loop's requests count where they end. An open loop's where they were due, or a slow one never would."""
    return start <= (request.planned if open_loop else request.ended) <= end


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRules:
    """What counts: seconds from start to end, the limits of goodput, tokens that all prompts share on purpose."""

    start: float
    end: float
    slos: Sequence[Slo] = ()
    shared_prefix: int = 0
    open_loop: bool = False


def window_of(outcomes: Sequence[RequestOutcome], rules: WindowRules, seed: int) -> Window:
    """Return the figures of a window: latencies of the requests that count there, tokens that came in it."""
    start, end, slos, open_loop = rules.start, rules.end, rules.slos, rules.open_loop
    rng = np.random.default_rng(seed)
    everything = [request for outcome in outcomes for request in outcome.seen]
    ended = [request for request in everything if _counts(request, start, end, open_loop=open_loop)]
    ended.sort(key=lambda request: request.planned if open_loop else request.ended)
    good = [request for request in ended if not request.error]
    ttft = np.array([request.first - request.sent for request in good])
    e2e = np.array([request.last - request.sent for request in good])
    tpot = np.array([tpot_s(request) for request in good if request.tokens > 1])
    rates = _block_rates(outcomes, start, end)
    rate = float(rates.mean()) if len(rates) else 0.0
    seconds = max(end - start, 1e-9)
    prompt = float(sum(request.prompt_tokens or request.isl for request in good))
    # a queue that grows is how an open loop drifts; in a closed one lengths and slots make E2E vary
    drift, drift_error = _drift(tpot if len(tpot) and not open_loop else e2e)
    completed = sum(start <= request.ended <= end and not request.error for request in everything)
    chunks = sum(request.chunks for request in good)
    return Window(
        start=start,
        end=end,
        open_loop=open_loop,
        unended=sum(start <= planned <= end for o in outcomes for planned, _ in o.unfinished) if open_loop else 0,
        requests=len(ended),
        errors=len(ended) - len(good),
        error_example=next((request.error for request in ended if request.error), ""),
        output_tok_s=rate,
        output_tok_s_interval=_interval(rates, rng),
        total_tok_s=rate + prompt / seconds,
        request_rate=completed / seconds,
        goodput_rps=sum(_within(request, slos) for request in good) / seconds,
        in_flight=_in_flight(outcomes, start, end),
        ttft=spread_ms(ttft, rng),
        tpot=spread_ms(tpot if len(tpot) else np.zeros(len(good)), rng),
        e2e=spread_ms(e2e, rng),
        chunk_gap=spread_ms(np.concatenate([_gaps(o, start, end) for o in outcomes] or [np.zeros(0)]), rng),
        tokens_per_chunk=sum(request.tokens for request in good) / max(1, chunks),
        cached_share=sum(max(0, request.cached - rules.shared_prefix) for request in good) / max(1.0, prompt),
        wrong_lengths=sum(_wrong_length(request) for request in good) / max(1, len(good)),
        generator=_generator(outcomes, ended, start, end, rate * seconds),
        drift=drift,
        drift_error=drift_error,
    )


def _generator(
    outcomes: Sequence[RequestOutcome], ended: Sequence[Seen], start: float, end: float, tokens: float
) -> Generator:
    lags = np.array([lag for o in outcomes for at, lag in o.lags_s if start <= at <= end] or [0.0]) * 1e3
    cpu = _cpu(outcomes, start, end)
    return Generator(
        sent_late_p99_ms=float(np.percentile([(s.sent - s.planned) * 1e3 for s in ended] or [0.0], 99)),
        loop_lag_mean_ms=float(lags.mean()),
        loop_lag_p99_ms=float(np.percentile(lags, 99)),
        cpu_share=cpu / max(1, len(outcomes)),
        cpu_s_per_1000_tokens=1e3 * cpu * (end - start) / max(1.0, tokens),
    )


def tpot_s(request: Seen) -> float:
    """Return (last token - first token) / (tokens - 1) in seconds: the field's definition, independent of the tokens in
    a chunk.
    """
    return (request.last - request.first) / (request.tokens - 1)


def spread_ms(seconds: Array, rng: np.random.Generator) -> Spread:
    """Return mean and percentiles in ms, with the bootstrap interval of the mean."""
    if not len(seconds):
        return Spread(by={}, mean_interval=(math.nan, math.nan))
    percentiles = np.percentile(seconds, list(STATISTICS.values())) * 1e3
    by = {str(Statistic.MEAN): float(seconds.mean() * 1e3)}
    by |= {str(name): float(value) for name, value in zip(STATISTICS, percentiles, strict=True)}
    low, high = _interval(seconds[:: max(1, len(seconds) // 5000)], rng)
    return Spread(by=by, mean_interval=(low * 1e3, high * 1e3))


def _interval(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    if len(values) < 2:
        only = float(values[0]) if len(values) else math.nan
        return only, only
    means = rng.choice(values, size=(RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _block_rates(outcomes: Sequence[RequestOutcome], start: float, end: float) -> Array:
    """Return tokens per second of equal blocks of the window, of whole bins."""
    first, last = math.ceil(start / BIN_S), math.floor(end / BIN_S)
    bins = np.zeros(max(0, last - first))
    for outcome in outcomes:
        for number, tokens in outcome.tokens_by_bin.items():
            if first <= number < last:
                bins[number - first] += tokens
    if not len(bins):
        return bins
    edges = np.linspace(0, len(bins), min(BLOCKS, len(bins)) + 1).astype(int)
    rates: Array = np.add.reduceat(bins, edges[:-1]) / (np.diff(edges) * BIN_S)
    return rates


def whole_waves(outcomes: Sequence[RequestOutcome], start: float, end: float, clients: int) -> float:
    """Return the last instant up to `end` at which a closed loop's clients have all got equally many answers.

    Clients whose requests begin and end together make tokens in bursts; a window that ends within a burst would be off
    by part of a wave.
    """
    ended = sorted(request.ended for outcome in outcomes for request in outcome.seen)
    before = sum(at <= start for at in ended)
    within = ended[before : bisect_right(ended, end)]
    if not before or len(within) < clients:
        return end
    last = ended[before - 1 + len(within) // clients * clients]
    return min(end, start + last - ended[before - 1])


def _in_flight(outcomes: Sequence[RequestOutcome], start: float, end: float) -> float:
    """Return how many requests were in flight on average."""
    busy = 0.0
    for outcome in outcomes:
        busy += sum(max(0.0, min(request.ended, end) - max(request.sent, start)) for request in outcome.seen)
        busy += sum(max(0.0, end - max(sent, start)) for _, sent in outcome.unfinished)
    return busy / max(end - start, 1e-9)


def _gaps(outcome: RequestOutcome, start: float, end: float) -> Array:
    """Return the gaps between chunks that fell into the window, to a tenth of a second."""
    marks = [mark for mark in outcome.gap_marks if start <= mark[0] * BIN_S <= end]
    return np.array(outcome.gaps_s[marks[0][1] : marks[-1][1]] if marks else [])


def _cpu(outcomes: Sequence[RequestOutcome], start: float, end: float) -> float:
    """Return cores used by all workers together."""
    total = 0.0
    for outcome in outcomes:
        shares = [share for at, share in outcome.cpu if start <= at <= end]
        total += sum(shares) / len(shares) if shares else 0.0
    return total


def _drift(values: Array) -> tuple[float, float]:
    """Return the slowdown of the last third of the requests against the first, less one, and its error."""
    third = len(values) // 3
    if third < 3:
        return 0.0, math.inf
    early, late = values[:third], values[-third:]
    means = float(early.mean()), float(late.mean())
    ratio = means[1] / max(means[0], 1e-12)
    relative = [float(part.std(ddof=1)) / max(mean, 1e-12) for part, mean in zip((early, late), means, strict=True)]
    error = ratio * math.hypot(*relative) / math.sqrt(third)
    return ratio - 1.0, error


def _wrong_length(request: Seen) -> bool:
    """Another output length than asked, or another prompt length than sent where token ids were."""
    return request.tokens != request.osl or bool(
        request.isl and request.prompt_tokens and request.prompt_tokens != request.isl
    )


def _within(request: Seen, slos: Sequence[Slo]) -> bool:
    """Say whether a request kept every limit, for any statistic of the objective."""
    ms = {
        "ttft": (request.first - request.sent) * 1e3,
        "tpot": tpot_s(request) * 1e3 if request.tokens > 1 else 0.0,
        "e2e": (request.last - request.sent) * 1e3,
    }
    return all(ms[str(slo.metric)] <= slo.limit_ms for slo in slos)
