"""Event replay: clients against the scheduler in virtual time, and what each client saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.layout import Array
from models.serving.request import Request
from models.serving.scheduler import DUE, INITIAL_NEW_TOKEN_RATIO, Limits, Scheduler, run_batch, take_finished
from models.serving.step_times import StepTimes


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayLoad:
    """Requests to replay, by input and output tokens, in the order they are sent.

    A closed loop: `concurrency` clients, each sends its next request when its answer is complete. With
    `arrivals_s` an open loop: request i is sent at that time, but never more than `concurrency` at once.
    `first_wave_s` delays what a closed loop sends at its start: the first requests meet a server that has not run
    these shapes yet; they come `apart_s` apart.
    """

    isl: npt.NDArray[np.int64]
    osl: npt.NDArray[np.int64]
    concurrency: int
    arrivals_s: Array | None = None
    first_wave_s: float = 0.0
    apart_s: float = 0.0


def replay(
    times: StepTimes, limits: Limits, load: ReplayLoad, *, measure_from: int = 0, measure_until: int | None = None
) -> Replay:
    """Run requests through the scheduler and return what each client saw.

    `measure_from`: the completions before this one are warm-up and not in the result; `measure_until`: the replay ends
    with this one, while the clients still send (by default with the last).
    """
    total = len(load.isl)
    last = total if measure_until is None else min(total, measure_until)
    server = Scheduler(times=times, limits=limits, ratio=INITIAL_NEW_TOKEN_RATIO * limits.conservativeness)
    lengths = list(zip(load.isl.tolist(), load.osl.tolist(), strict=True))
    planned = [0.0] * total if load.arrivals_s is None else load.arrivals_s.tolist()
    sent = 0

    def send(at_s: float, delay_s: float = 0.0) -> None:
        """Send the next request at `at_s`, or when it was to be sent if that is later."""
        nonlocal sent
        if sent < total:
            new, out = lengths[sent]
            at_s = max(at_s, planned[sent])
            visible_s = at_s + delay_s + times.front_end_s + times.front_end_token_s * new
            server.arrive(Request(sent, new, out, at_s, visible_s, prompt=new))
            sent += 1

    for number in range(min(load.concurrency, total)):
        send(0.0, load.first_wave_s + number * load.apart_s if load.arrivals_s is None else 0.0)
    finished: list[Request] = []
    finish_s: list[float] = []
    window = (0.0, 0.0, 0.0)
    while len(finished) < last:
        run_batch(server)
        if not server.finishing or server.finishing[0][0] > server.step + DUE:
            continue
        for request in take_finished(server):
            finished.append(request)
            finish_s.append(server.now_s)
            if len(finished) == measure_from:
                window = (server.now_s, server.generated, server.running_integral)
            send(server.now_s + times.front_end_s)
    return _summary(server, finished, finish_s, measure_from, window)


def _summary(
    server: Scheduler, finished: list[Request], finish_s: list[float], start: int, window: tuple[float, float, float]
) -> Replay:
    began_s, began_tokens, began_running = window
    if server.now_s <= began_s:  # requests of one length may all end in one step: then all of the run counts
        began_s, began_tokens, began_running = 0.0, 0.0, 0.0
    measured = finished[start:]
    ends = np.array(finish_s[start:])
    first = np.array([request.first_token_s for request in measured])
    sent = np.array([request.sent_s for request in measured])
    lengths = np.array([request.osl for request in measured], dtype=np.float64)
    elapsed = max(server.now_s - began_s, 1e-12)
    delay = server.times.front_end_s
    return Replay(
        ttft_s=first - sent,
        tpot_s=np.maximum(ends + delay - first, 0.0) / np.maximum(lengths - 1.0, 1.0),
        e2e_s=ends + delay - sent,
        finish_s=ends,
        osl=lengths,
        duration_s=elapsed,
        output_tok_s=(server.generated - began_tokens) / elapsed,
        mean_running=(server.running_integral - began_running) / elapsed,
        peak_kv_tokens=int(server.peak_kv),
        retractions=server.retractions,
    )
