"""Replay of a trace: requests at their times, sessions that wait for their answers, one server or several alike.

Behind several servers stands a router. Every server is the scheduler of `models.serving.scheduler`, with or without
prefix caches.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.layout import Array
from models.serving.prefix_caches import PrefixCaches
from models.serving.radix_cache import PromptPath
from models.serving.request import Request
from models.serving.scheduler import DUE, INITIAL_NEW_TOKEN_RATIO, Limits, Scheduler, run_batch, take_finished
from models.serving.step_times import StepTimes
from models.traffic.trace import NO_SESSION, Trace

# sgl-router's cache_aware policy: a prompt goes where most of its beginning was sent before if that is this share,
# else where the fewest tokens were sent; to the shortest queue while queues differ by so many requests and so many
# times (its defaults).
CACHE_THRESHOLD = 0.3
BALANCE_ABSOLUTE, BALANCE_RELATIVE = 64, 1.5
# Decode steps that one of several servers may run before it looks at what other servers' answers have brought.
STRIDE = 16.0


class Routing(StrEnum):
    """How a router chooses: the one whose cache has most, each in turn, or the one with the fewest requests."""

    CACHE_AWARE = "cache_aware"
    ROUND_ROBIN = "round_robin"
    LEAST_REQUESTS = "least_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceServers:
    """Servers alike: their step times, what each may hold, and whether it keeps prefixes (`page` tokens at a time)."""

    times: StepTimes
    limits: Limits
    count: int = 1
    cache: bool = True
    page: int = 1
    routing: Routing = Routing.CACHE_AWARE


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReplay:
    """What became of each request of a trace, in its order: times in seconds since its first, tokens from a cache."""

    sent_s: Array
    first_s: Array
    end_s: Array
    osl: Array
    isl: Array
    cached: npt.NDArray[np.int64]
    server: npt.NDArray[np.int64]
    peak_kv_tokens: int
    retractions: int
    mean_running: float

    @property
    def ttft_s(self) -> Array:
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> Array:
        return np.maximum(self.end_s - self.first_s, 0.0) / np.maximum(self.osl - 1.0, 1.0)

    @property
    def e2e_s(self) -> Array:
        return self.end_s - self.sent_s

    @property
    def hit_rate(self) -> float:
        """Share of all prompt tokens that came from a cache."""
        return float(self.cached.sum() / max(self.isl.sum(), 1.0))


@dataclass(slots=True)
class _Router:
    """Which servers have been sent what: by piece, as bits; and how many requests each has."""

    servers: TraceServers
    loads: list[int]
    tokens: list[int]
    sent: dict[int, int] = field(default_factory=dict)
    turn: int = 0

    def choose(self, path: PromptPath, isl: int) -> int:
        loads = self.loads
        if len(loads) == 1:
            return 0
        if self.servers.routing is Routing.ROUND_ROBIN:
            self.turn += 1
            return (self.turn - 1) % len(loads)
        if self.servers.routing is Routing.LEAST_REQUESTS:
            return loads.index(min(loads))
        chosen = self._by_prefix(path, isl)
        bit = 1 << chosen
        start = 0
        for piece, end in zip(path.pieces, path.ends, strict=True):
            before = self.sent.get(piece, 0)
            if not before & bit:
                self.sent[piece] = before | bit
                self.tokens[chosen] += end - start
            start = end
        return chosen

    def _by_prefix(self, path: PromptPath, isl: int) -> int:
        """Return the least loaded of those with the longest beginning, or another: see `CACHE_THRESHOLD`."""
        loads = self.loads
        most, least = max(loads), min(loads)
        if most - least > BALANCE_ABSOLUTE and most > BALANCE_RELATIVE * least:
            return loads.index(least)
        longest, who = 0, 0
        for piece, end in zip(path.pieces, path.ends, strict=True):
            bits = self.sent.get(piece, 0)
            if not bits or end > isl:
                break
            longest, who = end, bits
        if longest <= CACHE_THRESHOLD * isl:
            return self.tokens.index(min(self.tokens))
        return min((server for server in range(len(loads)) if who >> server & 1), key=lambda server: loads[server])


@dataclass(slots=True)
class _Play:
    """The state of a replay."""

    trace: Trace
    servers: TraceServers
    schedulers: list[Scheduler]
    router: _Router
    path_of: Callable[[int], PromptPath]
    due: list[tuple[float, int]]
    follower: list[int]
    think_s: list[float]
    lengths: list[tuple[int, int]]
    on: list[int]
    sent_s: list[float]
    first_s: list[float]
    end_s: list[float]
    cached: list[int]
    planned: list[float]
    next: list[tuple[float, int]] = field(default_factory=list)
    done: int = 0

    def plan(self, server: int) -> None:
        """Note when a server does its next piece of work; what was noted of it before no longer counts."""
        at_s = _next_s(self.schedulers[server])
        if at_s != self.planned[server]:
            self.planned[server] = at_s
            if at_s < math.inf:
                heapq.heappush(self.next, (at_s, server))

    def furthest_behind(self) -> tuple[float, int]:
        """Return the server with the earliest work, and when that is; never is infinity."""
        while self.next:
            at_s, server = self.next[0]
            if self.planned[server] == at_s:
                return at_s, server
            heapq.heappop(self.next)
        return math.inf, -1

    def send(self, index: int, at_s: float) -> None:
        """Let a request reach the router, and the server it chooses."""
        isl, osl = self.lengths[index]
        path = self.path_of(index) if len(self.schedulers) > 1 else NO_PATH
        chosen = self.router.choose(path, isl)
        self.router.loads[chosen] += 1
        self.on[index], self.sent_s[index] = chosen, at_s
        times = self.servers.times
        visible_s = at_s + times.front_end_s + times.front_end_token_s * isl
        self.schedulers[chosen].arrive(Request(index, isl, osl, at_s, visible_s, prompt=isl))
        self.plan(chosen)

    def finish(self, request: Request, at_s: float) -> None:
        """Note an answer; the session's next request comes when its user has read it."""
        index = request.index
        self.router.loads[self.on[index]] -= 1
        told_s = at_s + self.servers.times.front_end_s
        self.first_s[index], self.end_s[index], self.cached[index] = request.first_token_s, told_s, request.cached
        self.done += 1
        following = self.follower[index]
        if following >= 0:
            heapq.heappush(self.due, (told_s + self.think_s[following], following))


NO_PATH = PromptPath([], [])


def replay_trace(
    trace: Trace, servers: TraceServers, listener: Callable[[str, int, int], None] | None = None
) -> TraceReplay:
    """Run a trace; returns when every request has its answer.

    A request longer than a server's KV cache is as in `Scheduler`: it runs alone. `listener` hears what the caches do.
    """
    play = _begin(trace, servers, listener)
    while play.done < len(trace):
        at_s, which = play.furthest_behind()
        if play.due and play.due[0][0] <= at_s:
            send_s, index = heapq.heappop(play.due)
            play.send(index, send_s)
            continue
        server = play.schedulers[which]
        server.coming_s = play.due[0][0] if play.due else math.inf
        run_batch(server)
        if server.finishing and server.finishing[0][0] <= server.step + DUE:
            for request in take_finished(server):
                play.finish(request, server.now_s)
        play.planned[which] = math.inf
        play.plan(which)
    return _summary(play)


def _next_s(server: Scheduler) -> float:
    """Return when a server does its next piece of work: an idle one when its next request arrives, or never.

    A busy one decides on what it has seen: a request that comes while a batch runs is in time for the next.
    """
    if server.running or server.waiting or server.chunked is not None:
        return max(server.seen_s, server.now_s) if not server.running else server.seen_s
    return max(server.now_s, server.arriving[0][0]) if server.arriving else math.inf


def _begin(trace: Trace, servers: TraceServers, listener: Callable[[str, int, int], None] | None) -> _Play:
    count = len(trace)
    path_of = paths(trace)
    limits = servers.limits
    schedulers = []
    for _ in range(servers.count):
        cache = None
        if servers.cache:
            cache = PrefixCaches(
                path_of=path_of, kv_tokens=limits.kv_tokens, ranks=servers.times.ranks, page=servers.page, told=listener
            )
        ratio = INITIAL_NEW_TOKEN_RATIO * limits.conservativeness
        schedulers.append(Scheduler(times=servers.times, limits=limits, ratio=ratio, cache=cache))
    follower = followers(trace)
    think = trace.think_s
    first = np.flatnonzero(np.isnan(think))
    due = list(zip(trace.sent_s[first].tolist(), first.tolist(), strict=True))
    heapq.heapify(due)
    return _Play(
        trace=trace,
        servers=servers,
        schedulers=schedulers,
        router=_Router(servers, [0] * servers.count, [0] * servers.count),
        path_of=path_of,
        due=due,
        follower=follower,
        think_s=think.tolist(),
        lengths=list(zip(trace.isl.tolist(), np.maximum(trace.osl, 1).tolist(), strict=True)),
        on=[0] * count,
        sent_s=[0.0] * count,
        first_s=[0.0] * count,
        end_s=[0.0] * count,
        cached=[0] * count,
        planned=[math.inf] * servers.count,
    )


def followers(trace: Trace) -> list[int]:
    """Return for each request the next of its session if that waits for its answer, -1 if none does."""
    follower = [-1] * len(trace)
    last: dict[int, int] = {}
    waits = ~np.isnan(trace.think_s)
    for index, (session, wait) in enumerate(zip(trace.session.tolist(), waits.tolist(), strict=True)):
        if session == NO_SESSION:
            continue
        if wait and session in last:
            follower[last[session]] = index
        last[session] = index
    return follower


def paths(trace: Trace) -> Callable[[int], PromptPath]:
    """Return what gives the prompt and the answer of a request as pieces; those nobody shares have numbers below 0."""
    offsets, nodes, tokens = trace.offsets.tolist(), trace.nodes, trace.tokens
    isl, osl, answers = trace.isl.tolist(), trace.osl.tolist(), trace.answers.tolist()

    def path_of(index: int) -> PromptPath:
        start, end = offsets[index], offsets[index + 1]
        pieces = nodes[start:end].tolist()
        ends = np.cumsum(tokens[start:end], dtype=np.int64).tolist()
        prompt = len(pieces) - answers[index]
        covered = ends[prompt - 1] if prompt else 0
        if covered < isl[index]:
            del pieces[prompt:], ends[prompt:]
            pieces.append(-2 * index - 1)
            ends.append(isl[index])
        if ends[-1] < isl[index] + osl[index]:
            pieces.append(-2 * index - 2)
            ends.append(isl[index] + max(osl[index], 1))
        return PromptPath(pieces, ends)

    return path_of


def _summary(play: _Play) -> TraceReplay:
    busy_s = sum(server.running_integral for server in play.schedulers)
    elapsed_s = max(max(play.end_s), 1e-9)
    return TraceReplay(
        sent_s=np.array(play.sent_s),
        first_s=np.array(play.first_s),
        end_s=np.array(play.end_s),
        osl=np.array([float(osl) for _, osl in play.lengths]),
        isl=np.array([float(isl) for isl, _ in play.lengths]),
        cached=np.array(play.cached, dtype=np.int64),
        server=np.array(play.on, dtype=np.int64),
        peak_kv_tokens=int(max(server.peak_kv for server in play.schedulers)),
        retractions=sum(server.retractions for server in play.schedulers),
        mean_running=busy_s / elapsed_s,
    )
