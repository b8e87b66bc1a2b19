"""The replay's scheduler in real time: batches take as long as they would, and tokens come out as they are made."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.serving.prefix_caches import PrefixCaches
from models.serving.radix_cache import TokenPath
from models.serving.request import Request
from models.serving.scheduler import INITIAL_NEW_TOKEN_RATIO, Limits, Scheduler, leave, run_batch, take_finished
from models.serving.step_times import StepTimes
from tuner.emulator.recorder import Recorder
from tuner.emulator.roles import Meeting

# Batches between two draws of the world's noise.
NOISE_EVERY = 50
# How much of a batch's lateness the next one is told earlier by, and the most that counts: what a busy machine takes
# once is no habit.
LEARNED, MOST_LATE_S = 0.1, 0.003
# What the emulated model answers, as `output_ids` say.
ANSWER_ID = 7
# Tokens of prompts whose text is not looked at: numbers that no other prompt has.
UNKNOWN_TOKENS = 1 << 32


@dataclass(slots=True)
class ServedRequest:
    """A request on its way and what its client has been told; `news` wakes the client.

    `meeting` is where its other half is, on a prefill or decode server; `failure` why it was aborted here.
    """

    request: Request
    meeting: Meeting | None = None
    tokens: int = 0
    done: bool = False
    aborted: bool = False
    failure: str = ""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cached(self) -> int:
        """Prompt tokens that were cached when the request was admitted."""
        return self.request.cached


class Door(Protocol):
    """Where requests come in and go out of a server of one phase."""

    def came(self, live: ServedRequest) -> None:
        """A request has come; it may `enter` the scheduler later."""

    def served(self, live: ServedRequest) -> bool:
        """The scheduler has done with a request; True keeps it until it is `complete`."""

    def gone(self, live: ServedRequest) -> None:
        """A request has ended, with its answer or without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """The server's settings beyond its times and limits.

    `noise` is the relative standard deviation of a batch's time, drawn with `seed`; `radix`: prompts that were seen
    are cached; `recv_interval`: decode passes between two looks at what has come; `page`: tokens that
    are cached together.
    """

    noise: float = 0.0
    seed: int = 0
    radix: bool = True
    recv_interval: int = 1
    page: int = 1


@dataclass(slots=True)
class Punctuality:
    """How much earlier than due a timer is set so that its wakings are in time on average.

    A front end's time ends when the client can read: that this process wakes up late is part of it.
    """

    most_s: float
    ahead_s: float = 0.0

    def woke(self, late_s: float) -> None:
        """Learn from a waking: seconds after it was due, negative before."""
        self.ahead_s = min(self.most_s, max(0.0, self.ahead_s + LEARNED * min(late_s, MOST_LATE_S)))


def _tokens_of(prompt: tuple[int, ...] | int, osl: int, index: int) -> Sequence[int]:
    """Return prompt and answer as tokens; a prompt of which only the length is known shares nothing."""
    if isinstance(prompt, int):
        return range(index * UNKNOWN_TOKENS, index * UNKNOWN_TOKENS + prompt + osl)
    return prompt + (ANSWER_ID,) * osl


class Driver:
    """Runs batches for as long as there is work. `slower` stretches every batch, `mute` stops them.

    `clock` gives seconds; `recorder` counts what SGLang's metrics would.
    """

    def __init__(
        self,
        times: StepTimes,
        limits: Limits,
        habits: Habits,
        *,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._origin = clock, clock()
        self._habits, self._random, self._factor = habits, random.Random(habits.seed), 1.0
        self._paths: dict[int, TokenPath] = {}
        self._limits = limits
        self.server = Scheduler(
            times=times,
            limits=limits,
            ratio=INITIAL_NEW_TOKEN_RATIO * limits.conservativeness,
            cache=self._new_cache(times) if habits.radix else None,
        )
        self.live: dict[int, ServedRequest] = {}
        self.slower = 1.0
        self.mute = False
        self.door: Door | None = None
        self._timer = Punctuality(most_s=0.5 * times.front_end_s)
        self.batches = 0
        self._recorder = recorder
        self._inbox: list[Request] = []
        self._unlooked = 0  # decode passes since the last look at the inbox
        self._work = asyncio.Event()
        self._count = 0

    def submit(
        self,
        prompt: tuple[int, ...] | int,
        osl: int,
        came_s: float | None = None,
        *,
        streaming: bool = False,
        meeting: Meeting | None = None,
    ) -> ServedRequest:
        """Take a request in: its prompt as token ids (or only their number) and its output length.

        `came_s`: `now()` when it came; reading it is part of the front end's time.
        """
        isl = prompt if isinstance(prompt, int) else len(prompt)
        self._count += 1
        now = self.now() if came_s is None else came_s
        times = self.server.times
        visible_s = now + times.front_end_s + times.front_end_token_s * isl
        request = Request(self._count, isl, osl, now, visible_s, prompt=isl)
        if self._habits.radix:
            self._paths[self._count] = TokenPath(_tokens_of(prompt, osl, self._count))
        live = ServedRequest(request, meeting)
        self.live[request.index] = live
        if self._recorder is not None:
            self._recorder.came(live, now, streaming=streaming)
        if self.door is not None and meeting is not None:
            self.door.came(live)
        else:
            self.enter(live)
        return live

    def enter(self, live: ServedRequest) -> None:
        """Let a request reach the scheduler; one that waited at the door does so now."""
        request = live.request
        if live.meeting is not None:
            request.visible_s = max(request.visible_s, self.now())
        if self._habits.recv_interval > 1 and self.server.running:
            self._inbox.append(request)
        else:
            self.server.arrive(request)
        self._work.set()

    def release_slot(self) -> None:
        """Free the slot of a request that was done here, and was kept until its KV cache had been sent."""
        if self._is_full():
            self.server.now_s = max(self.server.now_s, self.now())  # it did nothing until now
        self.server.held -= 1
        self._work.set()

    def abort(self, live: ServedRequest, failure: str = "") -> None:
        """Drop a request wherever it is."""
        server, request = self.server, live.request
        if live.done:
            return
        live.failure = failure
        if request.index in server.running:
            leave(server, request)
        if server.cache is not None:
            server.cache.dropped(request)
        self._paths.pop(request.index, None)
        server.waiting = deque(other for other in server.waiting if other is not request)
        server.arriving = [entry for entry in server.arriving if entry[2] is not request]
        self._inbox = [other for other in self._inbox if other is not request]
        if server.chunked is request:
            server.chunked = None
        if self._recorder is not None:
            self._recorder.aborted(live)
        live.done = live.aborted = True
        live.news.set()
        self.live.pop(request.index, None)
        if self.door is not None:
            self.door.gone(live)
        if self._recorder is not None and not self.live:
            self._recorder.refresh(server)

    def flush(self) -> bool:
        """Forget all prompts, as /flush_cache does; False while requests are running."""
        if self.live:
            return False
        if self._habits.radix:
            self.server.cache = self._new_cache(self.server.times)
        return True

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            if not self._busy() or self.mute:
                self._work.clear()
                await self._work.wait()
                continue
            told_s = self.step()
            await asyncio.sleep(max(0.0, told_s - self._timer.ahead_s - self.now()))
            self._timer.woke(self.now() - told_s)
            self.tell()

    def step(self) -> float:
        """Run one batch; return when its tokens have passed the front end on their way out."""
        server = self.server
        began_s = server.now_s = max(server.now_s, self.now() - 1.0)
        began_step = server.step
        self._look()
        run_batch(server)
        prefilled = server.step == began_step
        self._unlooked = self._habits.recv_interval if prefilled else self._unlooked + round(server.step - began_step)
        self._stretch(began_s)
        if self._recorder is not None:
            self._recorder.batch(server, self.live.values(), (began_s, began_step))
        return server.now_s + server.times.front_end_s

    def _look(self) -> None:
        """Take in what has come, every so many decode passes; at once after prefill or when nothing runs."""
        if self._inbox and (self._unlooked >= self._habits.recv_interval or not self.server.running):
            for request in self._inbox:
                self.server.arrive(request)
            self._inbox.clear()
        if self._unlooked >= self._habits.recv_interval:
            self._unlooked = 0

    def _stretch(self, before: float) -> None:
        self.batches += 1
        if self.batches % NOISE_EVERY == 1:
            self._factor = 1.0 + self._habits.noise * self._random.gauss(0.0, 1.0)
        more = (self.server.now_s - before) * (self.slower * self._factor - 1.0)
        self.server.now_s += more
        self.server.seen_s += more

    def _busy(self) -> bool:
        server = self.server
        waits = server.waiting or server.arriving or self._inbox or server.chunked is not None
        return bool(server.running or (waits and not self._is_full()))

    def _is_full(self) -> bool:
        """Whether requests that are being sent hold every slot, so that nothing can run."""
        server = self.server
        return not server.running and server.chunked is None and server.held >= self._limits.max_running

    def tell(self) -> None:
        """Tell the clients what has come out by now."""
        server, now_s = self.server, self.now()
        for request in take_finished(server):
            self._paths.pop(request.index, None)
            live = self.live.get(request.index)
            if live is not None:
                self._hear(live, request.osl, now_s)
                if self.door is None or not self.door.served(live):
                    self.complete(live)
        accepted = server.times.accepted
        for index, request in server.running.items():
            live = self.live.get(index)
            generated = min(request.osl, int(request.generated + (server.step - request.start_step) * accepted))
            if live is not None and generated > live.tokens:
                self._hear(live, generated, now_s)
                live.news.set()
        if self._recorder is not None and not server.running:
            self._recorder.refresh(server)

    def complete(self, live: ServedRequest) -> None:
        """Give a request its end."""
        self.live.pop(live.request.index, None)
        live.done = True
        if self._recorder is not None:
            self._recorder.finished(live, self.now())
        live.news.set()
        if self.door is not None:
            self.door.gone(live)

    def _hear(self, live: ServedRequest, tokens: int, now_s: float) -> None:
        if self._recorder is not None:
            self._recorder.told(live, tokens - live.tokens, now_s)
        live.tokens = tokens

    def _new_cache(self, times: StepTimes) -> PrefixCaches:
        paths = self._paths
        kv_tokens, page = self._limits.kv_tokens, self._habits.page
        return PrefixCaches(path_of=paths.__getitem__, kv_tokens=kv_tokens, ranks=times.ranks, page=page)

    def now(self) -> float:
        """Seconds since the server began."""
        return self._clock() - self._origin
