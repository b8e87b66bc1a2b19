"""Whether a point may be used, and the sentence that says why not. The severest finding is the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.workload import ALL_AT_ONCE
from tuner.bench.requests import RequestOutcome
from tuner.bench.window import Window
from tuner.seam import Verdict

# What the generator's own lateness may add to a TTFT: on average, and at its 99th percentile.
MOST_LAG_SHARE, MOST_LAG_P99_SHARE = 0.04, 0.25
LAG_MS, LAG_P99_MS = 2.0, 20.0  # never a complaint
MOST_CPU = 0.95
MOST_LATE_MS = 50.0
MOST_CACHED, CACHED_BY_CHANCE = 0.01, 1.0  # tokens a request: a first token may repeat by chance
MOST_CACHED_TEXT = 0.1  # people begin alike
MOST_ERRORS = 0.01
MOST_WRONG_LENGTHS = 0.01
MOST_UNENDED = 0.01
MOST_DRIFT, SURE = 0.1, 3.0
LONGEST_GAP_S = 5.0
SUSPENDED_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRequest:
    """What a point asked for: clients, or requests per second of an open loop; the roofline bounds the output rate."""

    clients: int
    rate: float = 0.0
    text: bool = False
    roofline_tok_s: float = math.inf


def judge(
    request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome], throttles: Sequence[str]
) -> tuple[Verdict, str]:
    """Return the verdict and its evidence."""
    for verdict, finding in _CHECKS:
        why = finding(request, window, outcomes)
        if why:
            return verdict, why
    if throttles:
        return Verdict.THROTTLED, f"the GPUs were held back: {', '.join(throttles)}"
    why = _unsteady(request, window, outcomes)
    return (Verdict.UNSTEADY, why) if why else (Verdict.OK, "")


def _clock(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    gap = max(outcome.longest_gap_s for outcome in outcomes)
    slept = max(outcome.suspended_s for outcome in outcomes)
    if slept > SUSPENDED_S:
        return f"the machine was suspended for {slept:.1f} s"
    return f"the load generator did not run for {gap:.1f} s" if gap > LONGEST_GAP_S else ""


def _impossible(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    figures = [window.output_tok_s, *window.ttft.by.values(), *window.tpot.by.values(), *window.e2e.by.values()]
    if not all(math.isfinite(figure) and figure >= 0.0 for figure in figures):
        return "a latency or rate is negative or not a number"
    if window.requests > window.errors and window.ttft.by["mean"] == 0.0:
        return "a first token came in no time"
    if window.output_tok_s > request.roofline_tok_s:
        most = request.roofline_tok_s
        return f"{window.output_tok_s:,.0f} tok/s are more than this machine's memory could feed ({most:,.0f})"
    return ""


def _errors(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    if window.errors <= MOST_ERRORS * window.requests:
        return ""
    share = 100 * window.errors / window.requests
    return f"{window.errors} of {window.requests} requests failed ({share:.1f} %), such as: {window.error_example}"


def _client(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    lag, lag_p99 = window.generator.loop_lag_mean_ms, window.generator.loop_lag_p99_ms
    ttft = window.ttft.by.get("mean", 0.0)
    if window.generator.cpu_share > MOST_CPU:
        return f"the load generator used {100 * window.generator.cpu_share:.0f} % of its core"
    if lag > max(LAG_MS, MOST_LAG_SHARE * ttft) or lag_p99 > max(LAG_P99_MS, MOST_LAG_P99_SHARE * ttft):
        return f"the load generator was {lag:.1f} ms late on average, {lag_p99:.0f} ms at its 99th percentile"
    if request.rate:
        late = window.generator.sent_late_p99_ms
        return f"requests were sent {late:.0f} ms late at the 99th percentile" if late > MOST_LATE_MS else ""
    if window.in_flight < ALL_AT_ONCE * request.clients:
        return f"{window.in_flight:.1f} of {request.clients} requests were in flight"
    return ""


def _cache(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    good = max(1, window.requests - window.errors)
    prompt = window.total_tok_s - window.output_tok_s
    per_request = window.cached_share * prompt * window.seconds / good
    if window.cached_share <= (MOST_CACHED_TEXT if request.text else MOST_CACHED) or per_request <= CACHED_BY_CHANCE:
        return ""
    share = 100 * window.cached_share
    if request.text:
        return f"{share:.1f} % of the prompt tokens came from the prefix cache: the dataset repeats itself"
    return f"{share:.1f} % of the prompt tokens came from the prefix cache, though no two prompts agree"


def _lengths(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    if window.wrong_lengths <= MOST_WRONG_LENGTHS:
        return ""
    return f"{100 * window.wrong_lengths:.1f} % of the requests have other lengths than asked"


def _unsteady(request: PointRequest, window: Window, outcomes: Sequence[RequestOutcome]) -> str:
    if window.unended > MOST_UNENDED * (window.requests + window.unended):
        return f"{window.unended} requests had not come to their end in time: more arrive than the server serves"
    drift = window.drift
    if abs(drift) <= MOST_DRIFT or abs(drift) < SURE * window.drift_error:
        return ""
    return f"requests became {100 * abs(drift):.0f} % {'slower' if drift > 0 else 'faster'} within the window"


Finding = Callable[[PointRequest, Window, Sequence[RequestOutcome]], str]
_CHECKS: tuple[tuple[Verdict, Finding], ...] = (
    (Verdict.CLOCK_JUMP, _clock),
    (Verdict.IMPOSSIBLE, _impossible),
    (Verdict.ERRORS, _errors),
    (Verdict.CLIENT_LIMITED, _client),
    (Verdict.CACHE_POLLUTED, _cache),
    (Verdict.LENGTHS_OFF, _lengths),
)
