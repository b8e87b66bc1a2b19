"""The replay's scheduler in real time: batches take as long as they would, and tokens come out as they are made."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field

from models.serving.scheduler import (
    INITIAL_NEW_TOKEN_RATIO,
    Limits,
    Request,
    Scheduler,
    leave,
    run_batch,
    take_finished,
)
from models.serving.step_times import StepTimes

# Batches between two draws of the world's noise.
NOISE_EVERY = 50
PREFIX_TOKENS = 64
MOST_PREFIXES = 100_000


@dataclass(slots=True)
class ServedRequest:
    """A request on its way and what its client has been told; `news` wakes the client."""

    request: Request
    cached: int
    tokens: int = 0
    done: bool = False
    aborted: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Driver:
    """Runs batches for as long as there is work. `slower` stretches every batch, `mute` stops them."""

    def __init__(self, times: StepTimes, limits: Limits, *, noise: float, seed: int) -> None:
        self._origin = time.monotonic()
        self.server = Scheduler(times=times, limits=limits, ratio=INITIAL_NEW_TOKEN_RATIO * limits.conservativeness)
        self.live: dict[int, ServedRequest] = {}
        self.slower = 1.0
        self.mute = False
        self.late_s = 0.0
        self.batches = 0
        self._noise, self._random, self._factor = noise, random.Random(seed), 1.0
        self._work = asyncio.Event()
        self._count = 0
        self._known: dict[int, None] = {}  # hashes of prompt prefixes, oldest first

    def submit(self, prompt: tuple[int, ...] | int, osl: int, came_s: float | None = None) -> ServedRequest:
        """Take a request in: its prompt as token ids (or only their number) and its output length.

        `came_s`: `now()` when it came; reading it is part of the front end's time.
        """
        cached = 0 if isinstance(prompt, int) else self._cached(prompt)
        isl = prompt if isinstance(prompt, int) else len(prompt)
        self._count += 1
        now = self.now() if came_s is None else came_s
        fresh = max(1, isl - cached)
        times = self.server.times
        visible_s = now + times.front_end_s + times.front_end_token_s * isl
        request = Request(self._count, fresh, osl, now, visible_s, prompt=fresh)
        live = ServedRequest(request, cached)
        self.live[request.index] = live
        self.server.arrive(request)
        self._work.set()
        return live

    def abort(self, live: ServedRequest) -> None:
        """Drop a request wherever it is."""
        server, request = self.server, live.request
        if live.done:
            return
        if request.index in server.running:
            leave(server, request)
        server.waiting = deque(other for other in server.waiting if other is not request)
        server.arriving = [entry for entry in server.arriving if entry[2] is not request]
        if server.chunked is request:
            server.chunked = None
        live.done = live.aborted = True
        live.news.set()
        self.live.pop(request.index, None)

    def flush(self) -> bool:
        """Forget all prompts, as /flush_cache does; False while requests are running."""
        if self.live:
            return False
        self._known.clear()
        return True

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            if not self._busy() or self.mute:
                self._work.clear()
                await self._work.wait()
                continue
            before = self.server.now_s = max(self.server.now_s, self.now() - 1.0)
            run_batch(self.server)
            self._stretch(before)
            # tokens pass the front end on their way out: what is told now came out of the batch that long ago
            told_s = self.server.now_s + self.server.times.front_end_s
            await asyncio.sleep(max(0.0, told_s - self.now()))
            self.late_s = self.now() - told_s
            self._tell()

    def _stretch(self, before: float) -> None:
        self.batches += 1
        if self.batches % NOISE_EVERY == 1:
            self._factor = 1.0 + self._noise * self._random.gauss(0.0, 1.0)
        more = (self.server.now_s - before) * (self.slower * self._factor - 1.0)
        self.server.now_s += more
        self.server.seen_s += more

    def _busy(self) -> bool:
        server = self.server
        return bool(server.running or server.waiting or server.arriving or server.chunked is not None)

    def _tell(self) -> None:
        server = self.server
        for request in take_finished(server):
            live = self.live.pop(request.index, None)
            if live is not None:
                live.tokens, live.done = request.osl, True
                live.news.set()
        accepted = server.times.accepted
        for index, request in server.running.items():
            live = self.live.get(index)
            made = min(request.osl, int(request.generated + (server.step - request.start_step) * accepted))
            if live is not None and made > live.tokens:
                live.tokens = made
                live.news.set()

    def _cached(self, prompt: tuple[int, ...]) -> int:
        """Return how many leading tokens an earlier prompt had too, in pages; and remember this one."""
        cached = key = 0
        for end in range(PREFIX_TOKENS, len(prompt) + 1, PREFIX_TOKENS):
            key = hash((key, prompt[end - PREFIX_TOKENS : end]))
            if key in self._known and cached == end - PREFIX_TOKENS:
                cached = end
            self._known[key] = None
        while len(self._known) > MOST_PREFIXES:
            self._known.pop(next(iter(self._known)))
        return min(cached, len(prompt) - 1)

    def now(self) -> float:
        """Seconds since the server began."""
        return time.monotonic() - self._origin
