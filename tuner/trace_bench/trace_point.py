"""A trace sent to a server: split over processes, waited for, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hwprobe.errors import InputError, SgtuneError
from models.layout import Array
from models.serving.estimate import statistics_ms
from models.serving.radix_cache import PromptPath, RadixCache
from models.serving.trace_replay import followers, paths
from models.traffic.trace import NO_SESSION, Trace
from models.workload import Metric, Slo
from tuner.bench.requests import Seen, Share, StreamProgress, TraceRequest
from tuner.bench.server_side import Address, flush_cache
from tuner.bench.window import tpot_s
from tuner.bench.worker_pool import WorkerPool
from tuner.choices import Backend

POLL_S = 0.2
START_DELAY_S = 0.5
# Open requests one process carries here: every prompt is made when it is sent.
STREAMS_PER_WORKER = 512
MOST_WORKERS = 4
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MINUTE_S = 60.0
# Requests sent later than this (99 of 100 in time) say more of this machine than of the server.
LATE_MS = 100.0
FOR_EVER_S = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How a trace is sent. `most_s`: what would be sent later is left out; `patience_s`: for the last answers."""

    backend: Backend
    model: str
    vocabulary: int
    seed: int
    most_s: float
    patience_s: float
    key: str | None
    slos: tuple[Slo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePoint:
    """What a server did under a trace: every request that has ended, and what its cache should have held.

    `expected` are tokens, in the order of `seen`: what a cache without end would hit with what was known to be computed
    when each request was sent; `at_most` with all that had been sent before, which may have been computed by then.
    """

    trace: Trace
    settings: TraceSettings
    seen: tuple[Seen, ...]
    expected: tuple[int, ...]
    at_most: tuple[int, ...]
    unended: int
    flushed: bool
    start: float


def run_trace(
    url: str, trace: Trace, settings: TraceSettings, watch: Callable[[StreamProgress, int], None]
) -> TracePoint:
    """Send a trace; returns when every request has ended or patience has. Raises SgtuneError where none succeeds."""
    address = Address.parse(url)
    flushed = flush_cache(address, settings.key)
    shares = trace_shares(address, trace, settings)
    deadline = shares[0].start + float(trace.sent_s[-1]) + settings.patience_s
    with WorkerPool(shares, "tuner.trace_bench.sender") as pool:
        while time.monotonic() < deadline:
            word = pool.listen(POLL_S)
            watch(word, len(trace))
            if word.exhausted:
                break
        outcomes = pool.stop()
    requests = sorted((one for outcome in outcomes for one in outcome.seen), key=lambda one: one.sent)
    if not any(not one.error for one in requests):
        why = requests[0].error if requests else "none came to its end in time"
        raise SgtuneError(f"no request of the trace succeeded: {why}")
    answers = settings.backend is Backend.SGLANG
    return TracePoint(
        trace=trace,
        settings=settings,
        seen=tuple(requests),
        expected=expected_hits(trace, requests, answers=answers),
        at_most=expected_hits(trace, requests, answers=answers, at_once=True),
        unended=len(trace) - len(requests),
        flushed=flushed,
        start=shares[0].start,
    )


def trace_shares(address: Address, trace: Trace, settings: TraceSettings) -> list[Share]:
    """Split a trace over processes, sessions whole."""
    count = max(1, min(MOST_WORKERS, -(-len(trace) // STREAMS_PER_WORKER)))
    requests = trace_requests(trace)
    parts: list[list[TraceRequest]] = [[] for _ in range(count)]
    for request, session in zip(requests, trace.session.tolist(), strict=True):
        parts[(request.index if session == NO_SESSION else session) % count].append(request)
    start = time.monotonic() + START_DELAY_S
    return [
        Share(
            host=address.host, port=address.port, secure=address.secure, backend=settings.backend,
            model=settings.model, seed=settings.seed, prefix_seed=settings.seed, vocabulary=settings.vocabulary,
            shared_prefix=0, isl=(1,), osl=(1,), due_s=FOR_EVER_S, start=start,
            arrivals_s=tuple(request.planned_s for request in part), requests=tuple(part),
            headers=(("Authorization", f"Bearer {settings.key}"),) if settings.key else (),
        )
        for part in parts if part
    ]  # fmt: skip


def trace_requests(trace: Trace) -> list[TraceRequest]:
    """Return the requests of a trace with their pieces numbered from 0 on."""
    path_of, follows = paths(trace), [-1] * len(trace)
    for before, after in enumerate(followers(trace)):
        if after >= 0:
            follows[after] = before
    named = int(trace.nodes.max()) + 1 if len(trace.nodes) else 0
    requests = []
    for index, (sent_s, think_s) in enumerate(zip(trace.sent_s.tolist(), trace.think_s.tolist(), strict=True)):
        path = path_of(index)
        requests.append(
            TraceRequest(
                index=index,
                planned_s=sent_s,
                after=follows[index],
                think_s=0.0 if math.isnan(think_s) else think_s,
                isl=int(trace.isl[index]),
                osl=max(1, int(trace.osl[index])),
                pieces=[piece if piece >= 0 else named - 1 - piece for piece in path.pieces],
                ends=path.ends,
            )
        )
    return requests


def expected_hits(trace: Trace, requests: Sequence[Seen], *, answers: bool, at_once: bool = False) -> tuple[int, ...]:
    """Return what each request should have found: prompts whose first token had come, and answers that were complete.

    `answers`: later turns hold the tokens that the server gave, which it names. `at_once`: a prompt counts from when it
    was sent: the most there can be.
    """
    path_of, tree = paths(trace), RadixCache()
    path_by_index: dict[int, PromptPath] = {one.index: path_of(one.index) for one in requests}
    events: list[tuple[float, int, int]] = []
    for place, one in enumerate(requests):
        events.append((one.sent, 2, place))
        if not one.error:
            events += [(one.sent if at_once else one.first, 3 if at_once else 1, place), (one.last, 0, place)]
    hits = [0] * len(requests)
    for _, kind, place in sorted(events):
        one = requests[place]
        isl = int(trace.isl[one.index])
        if kind == 2:
            hits[place] = tree.match(path_by_index[one.index], isl - 1).end
        elif kind in (1, 3):
            tree.insert(path_by_index[one.index], isl)
        elif answers:
            tree.insert(path_by_index[one.index], isl + max(0, one.tokens - 1))
    return tuple(hits)


def trace_point_document(point: TracePoint) -> dict[str, object]:
    """Return what was seen as JSON-ready values: times in ms, rates a second."""
    good = [row for row in zip(point.seen, point.expected, point.at_most, strict=True) if not row[0].error]
    requests = [one for one, _, _ in good]
    ttft_s = np.array([one.first - one.sent for one in requests])
    prompts = np.array([float(one.prompt_tokens or one.isl) for one in requests])
    cached = np.array([float(one.cached) for one in requests])
    expected, at_most = np.array([(float(least), float(most)) for _, least, most in good]).T
    broken = _broken(requests, point.settings.slos)
    began, ended = point.start, max(one.ended for one in requests)
    late_ms = _late_ms(point)
    tpot = np.array([tpot_s(one) for one in requests if one.tokens > 1] or [0.0])
    errors = len(point.seen) - len(requests)
    verdict, why = trace_verdict(point)
    example = next((one.error for one in point.seen if one.error), None)
    return {
        "requests": len(requests),
        "errors": errors,
        "error_example": example,
        "unended": point.unended,
        "flushed": point.flushed,
        "duration_s": ended - began,
        "lateness_ms": statistics_ms(late_ms / 1e3),
        "ttft_ms": statistics_ms(ttft_s),
        "tpot_ms": statistics_ms(tpot),
        "e2e_ms": statistics_ms(np.array([one.last - one.sent for one in requests])),
        "output_tok_s": sum(one.tokens for one in requests) / (ended - began),
        "goodput_rps": float((~broken).sum()) / (ended - began),
        "hit_rate": float(cached.sum() / prompts.sum()),
        "expected_hit_rate": float(expected.sum() / prompts.sum()),
        "cached_tokens": int(cached.sum()),
        "expected_cached_tokens": int(expected.sum()),
        "expected_at_most_tokens": int(at_most.sum()),
        "exact_hits": int((cached == expected).sum()),
        "hits_as_expected": int(((cached >= expected) & (cached <= at_most)).sum()),
        "ttft_by_cached_share": _by_share(ttft_s, cached / prompts),
        "minutes": _minutes(np.array([one.sent - began for one in requests]), ttft_s, broken),
        "verdict": verdict,
        "why": why,
    }


def _late_ms(point: TracePoint) -> Array:
    return np.array([(one.sent - one.planned) * 1e3 for one in point.seen])


def trace_verdict(point: TracePoint) -> tuple[str, str]:
    """Return whether the point can be used ("ok"), else what is wrong with it, and why."""
    failed = sum(bool(one.error) for one in point.seen) + point.unended
    if failed:
        return "errors", f"{failed} requests failed or did not end"
    late = float(np.percentile(_late_ms(point), 99))
    if late > LATE_MS:
        return "client_limited", f"1 in 100 requests was sent {late:,.0f} ms late or more: this machine is too busy"
    return "ok", ""


def _broken(requests: Sequence[Seen], slos: tuple[Slo, ...]) -> npt.NDArray[np.bool_]:
    """Return which requests are above a limit themselves."""
    broken = np.zeros(len(requests), dtype=bool)
    for slo in slos:
        broken |= np.array([_latency_s(one, slo.metric) * 1e3 > slo.limit_ms for one in requests])
    return broken


def _latency_s(one: Seen, metric: Metric) -> float:
    if metric is Metric.TPOT:
        return tpot_s(one)
    return (one.first if metric is Metric.TTFT else one.last) - one.sent


def _by_share(ttft_s: Array, share: Array) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for low, high in pairwise(SHARES):
        in_share = (share >= low) & ((share < high) | (high == SHARES[-1]))
        if in_share.any():
            rows.append(
                {"from": low, "to": high, "requests": int(in_share.sum()), "ttft_ms": statistics_ms(ttft_s[in_share])}
            )
    return rows


def _minutes(sent_s: Array, ttft_s: Array, broken: npt.NDArray[np.bool_]) -> list[dict[str, object]]:
    minute = (sent_s / MINUTE_S).astype(np.int64)
    rows: list[dict[str, object]] = []
    for number in np.unique(minute).tolist():
        in_minute = minute == number
        length_s = max(1e-9, min(MINUTE_S, float(sent_s.max()) - number * MINUTE_S))
        rows.append(
            {
                "minute": number,
                "requests": int(in_minute.sum()),
                "ttft_ms": statistics_ms(ttft_s[in_minute]),
                "goodput_rps": float((in_minute & ~broken).sum()) / length_s,
                "missed_share": float(broken[in_minute].mean()),
            }
        )
    return rows


def within_time(trace: Trace, most_s: float, longest: int | None) -> Trace:
    """Return what of a trace is sent within so many seconds. Raises InputError for a request beyond the context."""
    in_time = trace.taken(np.flatnonzero(trace.sent_s <= most_s))
    most = int((in_time.isl + in_time.osl).max())
    if longest and most > longest:
        raise InputError(f"the trace has a request of {most:,} tokens; the server's context length is {longest:,}")
    return in_time
