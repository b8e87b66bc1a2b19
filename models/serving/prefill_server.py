"""A server that only prefills, in virtual time: a queue, slots and KV cache for every attention-DP rank.

A request stays on one rank, and all ranks meet for a pass: it takes as long as its busiest rank. A prompt's slot and KV
cache are its own until the cache has arrived where it decodes.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from random import Random

from models.serving.request import Request
from models.serving.role_times import PrefillTimes
from models.serving.scheduler import Limits


@dataclass(slots=True)
class PrefillRank:
    """One attention-DP rank: what waits, the prompt that is prefilled in part, slots and KV tokens in use."""

    queue: deque[Request] = field(default_factory=deque)
    chunked: Request | None = None
    slots: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that is done, and the rank that keeps its KV cache until it has been sent."""

    rank: PrefillRank
    request: Request


@dataclass(slots=True)
class PrefillServer:
    """State of a prefill server; `limits` are those of one rank.

    As in `Scheduler`, `seen_s` is up to when arrivals are known at the next decision. `rooms` draws the rank of a
    request: SGLang takes its bootstrap room, a random number, modulo the ranks.
    """

    times: PrefillTimes
    limits: Limits
    ranks: list[PrefillRank]
    now_s: float = 0.0
    seen_s: float = 0.0
    rooms: Random = field(default_factory=lambda: Random(0))
    arriving: list[tuple[float, int, Request]] = field(default_factory=list)  # a heap by time
    sending: list[tuple[float, list[Prefilled]]] = field(default_factory=list)

    def arrive(self, request: Request) -> None:
        """Let a request reach the server at its `visible_s`."""
        heapq.heappush(self.arriving, (request.visible_s, request.index, request))

    def next_s(self) -> float:
        """Return when the server does its next piece of work: never, where all it could do waits for a transfer."""
        if any(self.may_run(rank) for rank in self.ranks):
            return self.now_s
        return max(self.now_s, self.arriving[0][0]) if self.arriving else math.inf

    def release(self, at_s: float) -> None:
        """Free what the prompts held whose KV caches have arrived."""
        waited = not any(self.may_run(rank) for rank in self.ranks)
        for arrived_s, prompts in self.sending:
            if arrived_s <= at_s:
                self.free(prompts)
        self.sending = [(arrived_s, prompts) for arrived_s, prompts in self.sending if arrived_s > at_s]
        if waited:
            self.now_s = max(self.now_s, at_s)

    def free(self, prompts: list[Prefilled]) -> None:
        """Free slots and KV cache of these prompts."""
        for prompt in prompts:
            prompt.rank.slots -= 1
            prompt.rank.kv_tokens -= prompt.request.prompt

    def may_run(self, rank: PrefillRank) -> bool:
        """Say whether a rank has something to prefill now."""
        return rank.chunked is not None or (bool(rank.queue) and self.has_room(rank, rank.queue[0]))

    def has_room(self, rank: PrefillRank, request: Request) -> bool:
        """Say whether a rank can admit a request: a slot and KV cache, or nothing that it would have to wait for."""
        if rank.slots >= self.limits.max_running:
            return False
        return rank.slots == 0 or rank.kv_tokens + request.prompt <= self.limits.kv_tokens


def prefill_server(times: PrefillTimes, limits: Limits) -> PrefillServer:
    """Return an idle server; `limits` are those of all its ranks together."""
    count = times.ranks
    of_rank = Limits(
        kv_tokens=limits.kv_tokens // count,
        max_running=max(1, limits.max_running // count),
        chunk=max(1, limits.chunk // count),
        max_prefill=max(1, limits.max_prefill // count),
    )
    return PrefillServer(times=times, limits=of_rank, ranks=[PrefillRank() for _ in range(count)])


def run_pass(server: PrefillServer) -> list[Prefilled]:
    """Run one pass over all ranks, once something has arrived; return the prompts that it completes."""
    if server.arriving and not any(server.may_run(rank) for rank in server.ranks):
        server.now_s = server.seen_s = max(server.now_s, server.arriving[0][0])
    while server.arriving and server.arriving[0][0] <= server.seen_s:
        server.rooms.choice(server.ranks).queue.append(heapq.heappop(server.arriving)[2])
    completed: list[Prefilled] = []
    tokens, busiest, most_pairs, most_prompts = 0, 0, 0.0, 0
    for rank in server.ranks:
        new, pairs, prompts = _fill(server, rank, completed)
        tokens += new
        busiest, most_pairs, most_prompts = max(busiest, new), max(most_pairs, pairs), max(most_prompts, prompts)
    if tokens:
        seconds = server.times.pass_s(tokens, busiest, most_pairs, most_prompts)
        server.seen_s = server.now_s if server.times.overlap else server.now_s + seconds
        server.now_s += seconds
    else:
        server.seen_s = server.now_s
    return completed


def _fill(server: PrefillServer, rank: PrefillRank, completed: list[Prefilled]) -> tuple[int, float, int]:
    """Give a rank its share of a pass: new tokens, pairs of one and what it attends to, prompts."""
    limits = server.limits
    tokens, pairs, prompts = 0, 0.0, 0
    while tokens < limits.chunk:
        request, rank.chunked = rank.chunked, None
        if request is None:
            if not rank.queue or not server.has_room(rank, rank.queue[0]):
                break
            if prompts and tokens + rank.queue[0].prompt > limits.max_prefill:
                break
            request = rank.queue.popleft()
            rank.slots += 1
            rank.kv_tokens += request.prompt
        take = min(limits.chunk - tokens, request.prompt - request.prefilled)
        pairs += take * (0.5 * take + request.prefilled)
        request.prefilled += take
        tokens, prompts = tokens + take, prompts + 1
        if request.prefilled < request.prompt:
            rank.chunked = request
            break
        completed.append(Prefilled(rank, request))
    return tokens, pairs, prompts
