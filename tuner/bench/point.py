"""One point: flush, warm up, measure a steady window, judge. `measure_point` is all that the rest of sgtune calls."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from hwprobe.errors import InputError, SgtuneError
from models.workload import Slo, Workload
from tuner.bench.requests import RequestOutcome, Share, StreamProgress
from tuner.bench.server_side import Address, Load, flush_cache, mean_load, read_load
from tuner.bench.verdict import PointRequest, judge
from tuner.bench.window import Window, WindowRules, whole_waves, window_of
from tuner.bench.worker_pool import WorkerPool
from tuner.bench.workload_sources import arrivals_s
from tuner.choices import Arrival, Backend
from tuner.seam import FailureKind, LaunchFailed, Measurement, Verdict

# Streams one process carries without being the limit itself (docs/bench.md).
STREAMS_PER_WORKER = 2048
STALLED_S = 60.0
POLL_S = 0.2
LOAD_POLL_S = 1.0
START_DELAY_S = 0.5
OPEN_WARM_UP = 0.2  # of the window, before it
LIVES_IN_WINDOW = 5.0
OPEN_LEAST = 20  # requests in the window of an open loop
OPEN_AFTER = 2.0  # windows for which requests keep coming, so that the last that count do not see an empty server

Alive = Callable[[], None]
Watcher = Callable[["LivePoint"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a point is measured. Durations in seconds.

    The window takes `waves` times the clients' requests, no less than `least_s`, no more than `most_s` after the
    warm-up of one wave. An open loop's takes `least_s`, or 20 requests, after 20 % more; requests keep coming until
    those due in the window have ended, for `most_s` in all. `alone`: the server has one role and no other.
    """

    backend: Backend = Backend.SGLANG
    model: str = ""
    arrival: Arrival = Arrival.CLOSED
    request_rate: float = 0.0
    waves: float = 5.0
    least_s: float = 10.0
    most_s: float = 600.0
    vocabulary: int = 32_000
    shared_prefix: int = 0
    prompts: tuple[str, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    workers: int = 0
    key: str | None = None
    flush: bool = True
    slos: tuple[Slo, ...] = ()
    roofline_tok_s: float = math.inf
    alone: bool = False

    @property
    def open_loop(self) -> bool:
        return self.arrival is not Arrival.CLOSED

    def at_rate(self, workload: Workload) -> Settings:
        """Return the settings of an open loop at the workload's rate, with a window several requests long.

        By Little's law a request lives for concurrency / rate; a warm-up of less would meet an emptier server.
        """
        rate = float(workload.request_rate or 0.0)
        least_s = max(self.least_s, LIVES_IN_WINDOW * workload.concurrency / rate)
        most_s = max(self.most_s, 4.0 * least_s)
        return replace(self, arrival=Arrival.POISSON, request_rate=rate, least_s=least_s, most_s=most_s)

    @property
    def open_window_s(self) -> float:
        """Return the length of an open loop's window. Raises InputError for a rate too low to fill one."""
        if self.request_rate <= 0.0:
            raise InputError(f"--request-rate is {self.request_rate:g}; it must be positive (requests per second)")
        length = max(self.least_s, OPEN_LEAST / self.request_rate)
        if length * (1.0 + OPEN_WARM_UP) > self.most_s:
            raise InputError(
                f"--request-rate {self.request_rate:g} sends fewer than {OPEN_LEAST} requests within --duration "
                f"{self.most_s:g}s: raise one of them"
            )
        return length


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePoint:
    """What is going on, for whoever shows it."""

    concurrency: int
    phase: str
    done: int
    wanted: int
    in_flight: int
    tok_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPoint:
    """One measured point: the load, the window, the server's own figures, and the verdict."""

    workload: Workload
    settings: Settings
    window: Window
    server: Load
    verdict: Verdict
    why: str
    flushed: bool
    warm_up_s: float
    outcomes: tuple[RequestOutcome, ...] = field(repr=False)

    def measurement(self) -> Measurement:
        """Return it as the tuner knows points."""
        window = self.window
        return Measurement(
            concurrency=self.workload.concurrency,
            achieved_in_flight=window.in_flight,
            output_tok_s=window.output_tok_s,
            output_tok_s_interval=window.output_tok_s_interval,
            ttft_ms=window.ttft.by,
            tpot_ms=window.tpot.by,
            e2e_ms=window.e2e.by,
            duration_s=self.warm_up_s + window.seconds,
            verdict=self.verdict,
            why=self.why,
            request_rate=self.settings.request_rate if self.settings.open_loop else None,
            goodput_req_s=window.goodput_rps if self.settings.open_loop else None,
        )


def measure_for_tuner(
    seed: int, settings: Settings, throttles: Callable[[], Sequence[str]] = tuple
) -> Callable[[str, Workload, Alive], Measurement]:
    """Return the function a live engine calls for each point of its ladder; every call draws new prompts."""

    def measure(url: str, workload: Workload, alive: Alive) -> Measurement:
        own = zlib.crc32(f"{seed}/{workload.concurrency}/{time.time_ns()}".encode())
        point_settings = settings if workload.request_rate is None else settings.at_rate(workload)
        around = Surroundings(alive=alive, throttles=throttles)
        return measure_point(url, workload, seed=own, settings=point_settings, around=around).measurement()

    return measure


def no_liveness_check() -> None:
    """Take the server to be alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Callbacks of a measurement.

    `alive` is called every fifth of a second and may raise; `watch` shows progress; `throttles` names the GPUs'
    throttle reasons, and is called at the end.
    """

    alive: Alive = no_liveness_check
    watch: Watcher | None = None
    throttles: Callable[[], Sequence[str]] = tuple


NOTHING_AROUND = Surroundings()


def measure_point(
    url: str,
    workload: Workload,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    around: Surroundings = NOTHING_AROUND,
) -> MeasuredPoint:
    """Measure one point of a running server. Prompts are unique by `seed`.

    Raises LaunchFailed (stalled) when no token has come for a minute, SgtuneError when no request succeeds.
    """
    settings_used, address = settings or Settings(), Address.parse(url)
    flushed = flush_cache(address, settings_used.key) if settings_used.flush else False
    shares = shares_of(address, workload, settings_used, seed)
    run = _Run(
        clients=workload.concurrency, chosen=settings_used, address=address, around=around, start=shares[0].start
    )
    with WorkerPool(shares) as pool:
        start, end = run.drive(pool)
        outcomes = pool.stop()
    if not settings_used.open_loop:
        end = whole_waves(outcomes, start, end, workload.concurrency)
    rules = WindowRules(
        start=start,
        end=end,
        slos=settings_used.slos,
        shared_prefix=settings_used.shared_prefix,
        open_loop=settings_used.open_loop,
    )
    window = window_of(outcomes, rules, seed)
    if window.requests == window.errors:
        why = window.error_example or "none came to its end in time; raise --duration or ask for fewer output tokens"
        raise SgtuneError(f"no request succeeded at concurrency {workload.concurrency}: {why}")
    point_request = PointRequest(
        clients=0 if settings_used.open_loop else workload.concurrency,
        rate=settings_used.request_rate,
        text=bool(settings_used.prompts),
        roofline_tok_s=settings_used.roofline_tok_s,
    )
    verdict, why = judge(point_request, window, outcomes, list(around.throttles()))
    return MeasuredPoint(
        workload=workload,
        settings=settings_used,
        window=window,
        server=mean_load(run.loads),
        verdict=verdict,
        why=why,
        flushed=flushed,
        warm_up_s=start - run.started,
        outcomes=tuple(outcomes),
    )


def shares_of(address: Address, workload: Workload, settings: Settings, seed: int) -> list[Share]:
    """Split the traffic over as many processes as it takes, never more than there are cores."""
    cores = os.cpu_count() or 1
    clients = workload.concurrency
    count = settings.workers or max(1, min(cores, -(-clients // STREAMS_PER_WORKER)))
    count = count if settings.open_loop else min(count, clients)
    isl, osl = _lengths(workload, settings, seed)
    due_s = (1.0 + OPEN_WARM_UP) * settings.open_window_s if settings.open_loop else 0.0
    horizon_s = min(settings.most_s, due_s + OPEN_AFTER * (due_s / (1.0 + OPEN_WARM_UP)))
    arrivals = arrivals_s(settings.arrival, settings.request_rate, horizon_s, seed) if settings.open_loop else ()
    base = Share(
        host=address.host,
        port=address.port,
        secure=address.secure,
        backend=settings.backend,
        model=settings.model,
        seed=0,
        prefix_seed=seed,
        vocabulary=settings.vocabulary,
        shared_prefix=settings.shared_prefix,
        isl=tuple(isl),
        osl=tuple(osl),
        prompts=settings.prompts,
        due_s=due_s,
        start=time.monotonic() + START_DELAY_S,
        headers=(("Authorization", f"Bearer {settings.key}"),) if settings.key else (),
        alone=settings.alone,
    )
    return [
        msgspec.structs.replace(
            base,
            seed=zlib.crc32(f"{seed}/{number}".encode()),
            clients=0 if settings.open_loop else clients // count + (number < clients % count),
            arrivals_s=arrivals[number::count],
            isl=base.isl[number:] + base.isl[:number],
            osl=base.osl[number:] + base.osl[:number],
        )
        for number in range(count)
    ]


def _lengths(workload: Workload, settings: Settings, seed: int) -> tuple[list[int], list[int]]:
    if settings.lengths:
        return [isl for isl, _ in settings.lengths], [osl for _, osl in settings.lengths]
    rng = np.random.default_rng(seed)
    count = 1 if workload.isl.range_ratio == workload.osl.range_ratio == 1.0 else 8192
    return workload.isl.sample(count, rng).tolist(), workload.osl.sample(count, rng).tolist()


@dataclass(slots=True, kw_only=True)
class _Run:
    """The clock of one point: when the warm-up ends, when the window does."""

    clients: int
    chosen: Settings
    address: Address
    around: Surroundings
    start: float
    started: float = field(default_factory=time.monotonic)
    polled: float = 0.0
    loads: list[Load] = field(default_factory=list)

    def drive(self, pool: WorkerPool) -> tuple[float, float]:
        """Run warm-up and window; return the window's start and end."""
        if self.chosen.open_loop:
            return self._drive_open(pool)
        warm = self._until(pool, "warm-up", 0, self.clients, 0.0)
        self.loads.clear()
        start = time.monotonic()
        self._until(pool, "window", warm.done, math.ceil(self.chosen.waves * self.clients), self.chosen.least_s)
        return start, time.monotonic()

    def _drive_open(self, pool: WorkerPool) -> tuple[float, float]:
        length = self.chosen.open_window_s
        start = self.start + OPEN_WARM_UP * length
        end, expected = start + length, math.ceil((1.0 + OPEN_WARM_UP) * length * self.chosen.request_rate)
        while (now := time.monotonic()) < self.start + self.chosen.most_s:
            word = pool.listen(POLL_S)
            if now < start:
                self.loads.clear()
            self._look(word, "open loop", word.done, expected)
            if word.exhausted and now > end:
                break
        return start, end

    def _until(self, pool: WorkerPool, phase: str, before: int, requests: int, least_s: float) -> StreamProgress:
        """Go on until `requests` more are done and `least_s` are over, or the time box is used up."""
        began = time.monotonic()
        while True:
            word = pool.listen(POLL_S)
            self._look(word, phase, word.done - before, requests)
            spent = time.monotonic() - began
            if (word.done - before >= requests and spent >= least_s) or spent >= self.chosen.most_s:
                return word

    def _look(self, word: StreamProgress, phase: str, completed: int, expected: int) -> None:
        self.around.alive()
        now = time.monotonic()
        if word.in_flight and word.silent_s > STALLED_S:
            reason = f"{word.in_flight} requests in flight and no token for {word.silent_s:.0f} s"
            raise LaunchFailed(FailureKind.STALLED, reason, now - self.started)
        if now - self.polled > LOAD_POLL_S:
            self.polled = now
            self.loads.append(read_load(self.address, self.chosen.key))
        if self.around.watch is not None:
            elapsed = now - self.started
            rate = word.tokens / max(elapsed - START_DELAY_S, 1.0)
            self.around.watch(
                LivePoint(
                    concurrency=self.clients,
                    phase=phase,
                    done=completed,
                    wanted=expected,
                    in_flight=word.in_flight,
                    tok_s=rate,
                    elapsed_s=elapsed,
                )
            )
