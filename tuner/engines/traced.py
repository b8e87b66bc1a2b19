"""A point under a trace: played in a world, or sent to a server by the generator of `sgtune bench --traffic`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.config import ServerConfig
from models.layout import Array
from models.serving.estimate import Context, statistics_ms
from models.traffic.traced_workload import TracedWorkload
from models.workload import Slo, Statistic, Workload
from planner.traffic_plans.traced import CountedRequests, counted, played_on
from tuner.bench.requests import Seen
from tuner.choices import Backend
from tuner.seam import Measurement, Verdict
from tuner.trace_bench.trace_point import TracePoint, TraceSettings, run_trace, trace_verdict

# Parts of a window whose mean TPOTs give its interval (Student's t for 3 parts, 95 %).
PARTS = 3
STUDENT_T_95 = 4.303
# For the last answers, after the last request is sent.
PATIENCE_S = 600.0

Measure = Callable[[str, Workload, Callable[[], None]], Measurement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much slower than the replay a world is in each part of a measurement."""

    factors: Array
    slos: tuple[Slo, ...]


def measure_played(context: Context, config: ServerConfig, workload: TracedWorkload, pace: Pace) -> Measurement:
    """Replay the window in a world, and let everything take as much longer as the world's noise says."""
    played = played_on(context, config, workload)
    requests = counted(played, workload)
    rates = requests.output_tok_s / pace.factors
    middle = float(rates.mean())
    half = STUDENT_T_95 * float(rates.std(ddof=1)) / math.sqrt(len(rates))
    slow = requests.output_tok_s / middle

    def slowed(statistics: dict[str, float]) -> dict[str, float]:
        return {Statistic(name): value * slow for name, value in statistics.items()}

    return Measurement(
        concurrency=workload.concurrency,
        achieved_in_flight=played.mean_running,
        output_tok_s=middle,
        output_tok_s_interval=(middle - half, middle + half),
        ttft_ms=slowed(statistics_ms(requests.ttft_s)),
        tpot_ms=slowed(requests.tpot_ms),
        e2e_ms=slowed(statistics_ms(requests.e2e_s)),
        duration_s=float(played.end_s.max()),
        retractions=played.retractions,
        request_rate=workload.request_rate,
        goodput_req_s=requests.goodput_rps(pace.slos, workload.mark.length_s, slow),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSending:
    """How a tuner's engine sends a trace: its seed, the vocabulary of prompts, the limits of goodput."""

    seed: int
    vocabulary: int
    slos: tuple[Slo, ...]
    throttles: Callable[[], Sequence[str]]


def measure_either(closed: Measure, sending: TraceSending) -> Measure:
    """Return what measures a stretch of a trace by sending it, and every other load as `closed` does."""

    def measure(url: str, workload: Workload, alive: Callable[[], None]) -> Measurement:
        if isinstance(workload, TracedWorkload):
            return _sent(url, workload, sending, alive)
        return closed(url, workload, alive)

    return measure


def _sent(url: str, workload: TracedWorkload, sending: TraceSending, alive: Callable[[], None]) -> Measurement:
    """Send the window, lead-in included, and return what came of the requests that count."""
    settings = TraceSettings(
        backend=Backend.SGLANG, model="", vocabulary=sending.vocabulary,
        seed=zlib.crc32(f"{sending.seed}/{workload.mark.digest}".encode()), most_s=math.inf, patience_s=PATIENCE_S,
        key=None, slos=sending.slos,
    )  # fmt: skip
    point = run_trace(url, workload.trace, settings, lambda word, total: alive())
    return measurement_of(point, workload, list(sending.throttles()))


def measurement_of(point: TracePoint, workload: TracedWorkload, throttles: Sequence[str]) -> Measurement:
    """Return what was seen of the requests that count as the tuner knows points.

    The interval is that of the mean TPOT over thirds of the window: what the pace of the server varied by.
    """
    sent_s = np.array([one.sent - point.start for one in point.seen])
    answered = [
        one for one, counts in zip(point.seen, workload.counts(sent_s), strict=True) if counts and not one.error
    ]
    verdict, why = _verdict(point, answered, throttles)
    requests = _requests(answered)
    rate, half = requests.output_tok_s, _half(requests)
    return Measurement(
        concurrency=workload.concurrency,
        achieved_in_flight=float(requests.e2e_s.sum()) / max(float(requests.end_s.max() - requests.sent_s.min()), 1e-9),
        output_tok_s=rate,
        output_tok_s_interval=(rate * math.exp(-half), rate * math.exp(half)),
        ttft_ms=statistics_ms(requests.ttft_s),
        tpot_ms=requests.tpot_ms,
        e2e_ms=statistics_ms(requests.e2e_s),
        duration_s=max(one.ended for one in point.seen) - point.start,
        verdict=verdict,
        why=why,
        request_rate=workload.request_rate,
        goodput_req_s=requests.goodput_rps(point.settings.slos, workload.mark.length_s),
    )


def _requests(answered: Sequence[Seen]) -> CountedRequests:
    """Return what was seen in the order it was sent; one request that says nothing where none was answered."""
    rows = sorted((one.sent, one.first, one.last, float(one.tokens)) for one in answered) or [(0.0, 1.0, 1.0, 1.0)]
    sent, first, last, tokens = np.array(rows).T
    return CountedRequests(sent_s=sent, first_s=first, end_s=last, osl=tokens)


def _verdict(point: TracePoint, answered: Sequence[Seen], throttles: Sequence[str]) -> tuple[Verdict, str]:
    word, why = trace_verdict(point)
    if word != "ok":
        return Verdict(word), why
    if not answered:
        return Verdict.ERRORS, "no request of the window was answered"
    if not point.flushed:
        return Verdict.CACHE_POLLUTED, "the server's prefix cache could not be emptied before the trace"
    if throttles:
        return Verdict.THROTTLED, f"the GPUs were held back: {', '.join(throttles)}"
    return Verdict.OK, ""


def _half(requests: CountedRequests) -> float:
    """Return half the 95 % interval of the mean TPOT in log units, by thirds of the window; 0 where there are none."""
    pace = requests.tpot_s[requests.osl > 1]
    if len(pace) < 2 * PARTS or not (pace > 0.0).all():
        return 0.0
    means = np.array([float(part.mean()) for part in np.array_split(pace, PARTS)])
    return STUDENT_T_95 * float(means.std(ddof=1)) / math.sqrt(PARTS) / float(means.mean())
