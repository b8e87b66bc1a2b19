"""Event replay of SGLang's scheduler in virtual time: admission, chunking, KV limit, retraction.

It knows step times only through `StepTimes`; the closed form in `serving` shares the same equations.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.architecture import ModelArchitecture
from models.decode import decode_step
from models.engine_profile import EngineParameters
from models.layout import Array, ConfigTable
from models.machine import Machine
from models.prefill import prefill_s
from models.serving import FRONT_END_S, accepted_tokens, stages_at_work

# SGLang's admission: share of the remaining output of running requests it keeps room for, times the
# schedule conservativeness; it decays to the minimum over these many decode steps (environ.py).
INITIAL_NEW_TOKEN_RATIO = 0.7
MINIMUM_RATIO_FACTOR = 0.14
RATIO_DECAY_STEPS = 600
CLIPPED_NEW_TOKENS = 4096
RETRACT_DECODE_STEPS = 20
MAX_PREFILL_TOKENS = 16384
# Decode steps between two attempts to admit a waiting request.
LONGEST_STRIDE = 64


class StepTimes:
    """Step times of one configuration: decode by running batch and context, prefill by pass."""

    def __init__(
        self,
        arch: ModelArchitecture,
        machine: Machine,
        table: ConfigTable,
        engine: EngineParameters,
        *,
        sigma: float,
        acceptance: float,
        largest_batch: int,
    ) -> None:
        """`table` holds exactly one configuration; `largest_batch` is the most requests ever running."""
        self._prefill_inputs = (arch, machine, table, engine)
        self._sigma = sigma
        batch = np.arange(1, largest_batch + 1, dtype=np.float64)
        step = decode_step(arch, machine, table, engine, batch, np.zeros(1), sigma)
        self.base_s: list[float] = [0.0, *np.broadcast_to(step.total, batch.shape).tolist()]
        self.slope_s: list[float] = [0.0, *np.broadcast_to(step.kv_slope, batch.shape).tolist()]
        self.accepted = float(accepted_tokens(table, acceptance)[0])
        self.stages_at_work = float(stages_at_work(table)[0])
        self.front_end_s = FRONT_END_S
        self.poll_steps = 0.5 * float(table.recv_interval[0])
        self._cache: dict[tuple[int, int, int], float] = {}

    def decode_s(self, batch: int, context: float) -> float:
        return self.base_s[batch] + self.slope_s[batch] * context

    def prefill_s(self, prompts: int, new_tokens: int, prefix_tokens: int) -> float:
        """Seconds of a pass of `new_tokens` over `prompts` prompts with `prefix_tokens` cached before them."""
        key = (prompts, (new_tokens + 8) // 16, (prefix_tokens + 64) // 128)
        if key not in self._cache:
            new = np.array([max(1, key[1] * 16) / prompts])
            prefix = np.array([key[2] * 128 / prompts])
            self._cache[key] = float(
                prefill_s(*self._prefill_inputs, np.array([float(prompts)]), new, prefix, self._sigma)[0]
            )
        return self._cache[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler may hold: KV tokens and requests over all ranks, prefill tokens per pass."""

    kv_tokens: int
    max_running: int
    chunk: int
    conservativeness: float = 1.0


@dataclass(slots=True)
class _Request:
    index: int
    isl: int
    osl: int
    arrival_s: float
    prefilled: int = 0
    generated: float = 0.0
    first_token_s: float = -1.0
    start_step: float = 0.0

    @property
    def prompt(self) -> int:
        """Tokens to prefill: the input, and after a retraction what was generated too."""
        return self.isl + int(self.generated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Per finished request, in order of completion: TTFT, TPOT, E2E in seconds; and the server's totals."""

    ttft_s: Array
    tpot_s: Array
    e2e_s: Array
    finish_s: Array
    osl: Array
    duration_s: float
    output_tok_s: float
    mean_running: float
    peak_kv_tokens: int
    retractions: int


@dataclass(slots=True)
class _Server:
    """State of the replayed scheduler. Token counts of running requests are kept as sums, not per request."""

    times: StepTimes
    limits: Limits
    now_s: float = 0.0
    step: float = 0.0  # decode steps since the start; requests are tracked by the step they began at
    waiting: deque[_Request] = field(default_factory=deque)
    chunked: _Request | None = None
    running: dict[int, _Request] = field(default_factory=dict)
    finishing: list[tuple[float, int]] = field(default_factory=list)
    sum_prompt: float = 0.0
    sum_start: float = 0.0
    sum_osl_left: float = 0.0  # output still to come, as of `sum_start`
    ratio: float = INITIAL_NEW_TOKEN_RATIO
    running_integral: float = 0.0
    generated: float = 0.0
    peak_kv: float = 0.0
    retractions: int = 0

    @property
    def decoded(self) -> float:
        """Tokens generated by the running requests since each joined the batch."""
        return self.times.accepted * (len(self.running) * self.step - self.sum_start)

    @property
    def used(self) -> float:
        held = self.chunked.prefilled if self.chunked else 0
        return self.sum_prompt + self.decoded + held

    def spend(self, seconds: float) -> None:
        self.now_s += seconds
        self.running_integral += seconds * len(self.running)


def replay(
    times: StepTimes,
    limits: Limits,
    isl: npt.NDArray[np.int64],
    osl: npt.NDArray[np.int64],
    *,
    concurrency: int,
    measure_from: int = 0,
) -> Replay:
    """Run a closed loop of `concurrency` clients over the given requests and return what each saw.

    `measure_from`: the completions before this one are warm-up and not in the result. The closed form's
    ramp and drain errors (2.5-3.5 % on throughput) do not occur here.
    """
    total = len(isl)
    server = _Server(times=times, limits=limits, ratio=INITIAL_NEW_TOKEN_RATIO * limits.conservativeness)
    sent = 0

    def send(at_s: float) -> None:
        nonlocal sent
        if sent < total:
            server.waiting.append(_Request(sent, int(isl[sent]), int(osl[sent]), at_s))
            sent += 1

    for _ in range(min(concurrency, total)):
        send(0.0)
    done: list[_Request] = []
    finish_s: list[float] = []
    window = (0.0, 0.0, 0.0)
    while len(done) < total:
        if not _prefill(server):
            _decode(server)
        for request in _finished(server):
            done.append(request)
            finish_s.append(server.now_s)
            if len(done) == measure_from:
                window = (server.now_s, server.generated, server.running_integral)
            send(server.now_s)
    return _summary(server, done, finish_s, measure_from, window)


def _prefill(server: _Server) -> bool:
    """Run one prefill pass if the queue and memory allow one; SGLang prefers it to decoding."""
    if not server.waiting and server.chunked is None:
        return False
    limits, times = server.limits, server.times
    budget = min(limits.chunk, max(MAX_PREFILL_TOKENS, limits.chunk))
    left_output = server.sum_osl_left - server.decoded
    room = limits.kv_tokens - server.used - max(0.0, left_output) * min(1.0, server.ratio)
    prompts, new_tokens, prefix, joined = 0, 0, 0, []
    if server.chunked is not None:
        request, server.chunked = server.chunked, None
        room -= request.prompt - request.prefilled + _output_reserve(request)
        _whole_chunks(server, request, budget)
        prefix += request.prefilled
        take = min(budget, request.prompt - request.prefilled)
        request.prefilled += take
        prompts, new_tokens, budget = 1, take, budget - take
        joined.append(request)
    while server.waiting and budget > 0 and len(server.running) + len(joined) < limits.max_running:
        request = server.waiting[0]
        needed = request.prompt + _output_reserve(request)
        alone = not server.running and not joined
        if needed > room and not alone:
            break
        server.waiting.popleft()
        room -= needed
        take = min(budget, request.prompt)
        request.prefilled = take
        prompts, new_tokens, budget = prompts + 1, new_tokens + take, budget - take
        joined.append(request)
    if not joined:
        return False
    server.spend(times.prefill_s(prompts, new_tokens, prefix) / times.stages_at_work)
    for request in joined:
        if request.prefilled < request.prompt:
            server.chunked = request
        else:
            _join(server, request)
    server.peak_kv = max(server.peak_kv, server.used)
    return True


def _whole_chunks(server: _Server, request: _Request, budget: int) -> None:
    """Run the passes that one long prompt fills alone: nothing else can join them."""
    while request.prompt - request.prefilled > budget:
        server.spend(server.times.prefill_s(1, budget, request.prefilled) / server.times.stages_at_work)
        request.prefilled += budget


def _output_reserve(request: _Request) -> int:
    """Room SGLang keeps for the output of a request it admits."""
    return min(request.osl - int(request.generated), CLIPPED_NEW_TOKENS)


def _join(server: _Server, request: _Request) -> None:
    """Move a prefilled request into the running batch; the pass produced its next token."""
    if request.first_token_s < 0:
        batch = min(len(server.running) + 1, len(server.times.base_s) - 1)
        polling = server.times.poll_steps * server.times.decode_s(batch, request.isl)
        request.first_token_s = server.now_s + server.times.front_end_s + polling
        server.generated += 1
        request.generated = 1.0
    request.start_step = server.step
    server.running[request.index] = request
    server.sum_prompt += request.prompt
    server.sum_start += server.step
    left = max(0.0, request.osl - request.generated)
    server.sum_osl_left += left
    heapq.heappush(server.finishing, (server.step + left / server.times.accepted, request.index))


def _decode(server: _Server) -> None:
    """Advance the running batch to the next completion, the next possible admission, or a full cache."""
    batch = len(server.running)
    times = server.times
    _drop_stale(server)
    to_finish = max(1.0, server.finishing[0][0] - server.step)
    free_steps = (server.limits.kv_tokens - server.used) / (batch * times.accepted)
    if free_steps < 1.0 and batch > 1:
        _retract(server)
        return
    # Step times are linear in the context, so the middle of a stride is exact; only while the admission
    # ratio decays does a waiting request need to be reconsidered along the way.
    floor = INITIAL_NEW_TOKEN_RATIO * MINIMUM_RATIO_FACTOR * server.limits.conservativeness
    patience = LONGEST_STRIDE if server.waiting and server.ratio > floor else math.inf
    stride = min(to_finish, patience, max(1.0, free_steps))
    context = server.used / batch + stride * times.accepted / 2.0
    server.spend(stride * times.decode_s(batch, context))
    server.step += stride
    server.generated += stride * batch * times.accepted
    initial = INITIAL_NEW_TOKEN_RATIO * server.limits.conservativeness
    server.ratio = max(floor, server.ratio - stride * (initial - floor) / RATIO_DECAY_STEPS)
    server.peak_kv = max(server.peak_kv, server.used)


def _drop_stale(server: _Server) -> None:
    """Forget heap entries of requests that were retracted since."""
    while server.finishing[0][1] not in server.running:
        heapq.heappop(server.finishing)


def _finished(server: _Server) -> list[_Request]:
    """Take the requests whose last token has come out of the batch."""
    found = []
    while server.finishing and server.finishing[0][0] <= server.step + 1e-9:
        due, index = heapq.heappop(server.finishing)
        request = server.running.get(index)
        if request is None or abs(request.start_step + _steps_left(server, request) - due) > 1e-6:
            continue
        _leave(server, request)
        request.generated = float(request.osl)
        found.append(request)
    return found


def _steps_left(server: _Server, request: _Request) -> float:
    """Decode steps from joining to the last token."""
    return max(0.0, request.osl - request.generated) / server.times.accepted


def _leave(server: _Server, request: _Request) -> None:
    del server.running[request.index]
    server.sum_prompt -= request.prompt
    server.sum_start -= request.start_step
    server.sum_osl_left -= max(0.0, request.osl - request.generated)


def _retract(server: _Server) -> None:
    """The cache is full: send the requests with the least output back to the queue, as SGLang does."""
    by_output = sorted(server.running.values(), key=lambda r: (server.step - r.start_step + r.generated, -r.isl))
    for request in by_output:
        room = (server.limits.kv_tokens - server.used) / max(1, len(server.running))
        if room >= RETRACT_DECODE_STEPS or len(server.running) == 1:
            break
        since = (server.step - request.start_step) * server.times.accepted
        _leave(server, request)
        request.generated = min(request.osl - 1.0, request.generated + since)
        request.prefilled = 0
        server.waiting.append(request)
        server.retractions += 1
    wanted = server.sum_osl_left
    server.ratio = min(1.0, (server.decoded + RETRACT_DECODE_STEPS * len(server.running)) / max(1.0, wanted))


def _summary(
    server: _Server, done: list[_Request], finish_s: list[float], start: int, window: tuple[float, float, float]
) -> Replay:
    began_s, began_tokens, began_running = window
    measured = done[start:]
    ends = np.array(finish_s[start:])
    first = np.array([request.first_token_s for request in measured])
    arrival = np.array([request.arrival_s for request in measured])
    lengths = np.array([request.osl for request in measured], dtype=np.float64)
    elapsed = max(server.now_s - began_s, 1e-12)
    delay = server.times.front_end_s
    return Replay(
        ttft_s=first - arrival,
        tpot_s=np.maximum(ends + delay - first, 0.0) / np.maximum(lengths - 1.0, 1.0),
        e2e_s=ends + delay - arrival,
        finish_s=ends,
        osl=lengths,
        duration_s=elapsed,
        output_tok_s=(server.generated - began_tokens) / elapsed,
        mean_running=(server.running_integral - began_running) / elapsed,
        peak_kv_tokens=int(server.peak_kv),
        retractions=server.retractions,
    )
