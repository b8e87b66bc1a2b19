"""A stretch of a trace that stands for all of it: as many requests a second, as long, sharing as much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from hwprobe.errors import InputError
from models.traffic.hit_curve import NEVER, reuse_of
from models.traffic.trace import Trace

# Fewer requests than this say nothing of a mean, let alone of a p99.
LEAST_REQUESTS = 20
# What is sent before the window, as a share of it, and not counted: caches are not empty when it begins.
LEAD_SHARE = 0.5
# Windows looked at, and those of them whose sharing is worked out: the nearest in rate and lengths.
MOST_STARTS = 400
MOST_SHARED = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficFigures:
    """What is compared: requests a second, mean lengths in tokens, and the share of prompt tokens that came earlier."""

    requests_s: float
    input_tokens: float
    output_tokens: float
    shared: float

    def distance(self, other: TrafficFigures) -> float:
        """Return how far apart two are: the root of the squared logarithms of ratios, and of differences of shares."""
        ratios = [
            math.log(max(mine, 1e-9) / max(theirs, 1e-9))
            for mine, theirs in (
                (self.requests_s, other.requests_s),
                (self.input_tokens, other.input_tokens),
                (self.output_tokens, other.output_tokens),
            )
        ]
        return math.hypot(*ratios, self.shared - other.shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficWindow:
    """A stretch of a trace, and how it compares with the whole.

    `trace` holds what is sent: the first `lead_requests` before the window (of `lead_s` seconds), then the window's.
    `start_s` is the window's place in the whole trace, `begins_s` its place in `trace`.
    """

    trace: Trace
    start_s: float
    length_s: float
    lead_s: float
    lead_requests: int
    begins_s: float
    own: TrafficFigures
    whole: TrafficFigures
    requests_in_all: int
    looked_at: int

    @property
    def requests(self) -> int:
        """Requests that count."""
        return len(self.trace) - self.lead_requests

    @property
    def is_whole(self) -> bool:
        return self.requests == self.requests_in_all

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say which window it is, and why."""
        if self.is_whole:
            return (f"tuned under the whole trace: {self.requests:,} requests in {self.length_s:,.0f} s",)
        own, whole = self.own, self.whole
        lead = f", after the {self.lead_requests:,} of the {self.lead_s:,.0f} s before it" if self.lead_requests else ""
        return (
            f"tuned under seconds {self.start_s:,.0f} to {self.start_s + self.length_s:,.0f} of the trace: "
            f"{self.requests:,} of {self.requests_in_all:,} requests{lead}",
            f"of {self.looked_at:,} windows it is the most like the whole: {own.requests_s:.3g} requests/s "
            f"(whole {whole.requests_s:.3g}), {own.input_tokens:,.0f} tokens in ({whole.input_tokens:,.0f}), "
            f"{own.output_tokens:,.0f} out ({whole.output_tokens:,.0f}), {own.shared:.0%} of the prompts seen before "
            f"({whole.shared:.0%})",
        )

    def digest(self) -> str:
        """Return a hash of all that is sent: two windows with one hash are the same requests at the same times."""
        trace, hashed = self.trace, blake2b(digest_size=8)
        for column in (trace.sent_s, trace.think_s, trace.isl, trace.osl, trace.session, trace.offsets, trace.nodes,
                       trace.tokens, trace.answers):  # fmt: skip
            hashed.update(np.ascontiguousarray(column).tobytes())
        hashed.update(f"{self.lead_requests}".encode())
        return hashed.hexdigest()


def representative_window(trace: Trace, length_s: float) -> TrafficWindow:
    """Return the stretch of so many seconds that is nearest the whole trace, all of it where it is no longer.

    Raises InputError where no stretch holds LEAST_REQUESTS.
    """
    whole = _figures(trace, 0, max(trace.duration_s, 1e-9))
    if trace.duration_s <= length_s:
        return TrafficWindow(
            trace=trace, start_s=0.0, length_s=max(trace.duration_s, 1e-9), lead_s=0.0, lead_requests=0,
            begins_s=0.0, own=whole, whole=whole, requests_in_all=len(trace), looked_at=1,
        )  # fmt: skip
    starts = _starts(trace, length_s)
    if not len(starts):
        raise InputError(
            f"no {length_s:g} s of the trace hold {LEAST_REQUESTS} requests: give a longer --window, or more requests "
            "a second with --rate-scale"
        )
    windows = [
        _window(trace, float(start), length_s, whole, len(starts)) for start in _nearest(trace, starts, length_s)
    ]
    return min(windows, key=lambda window: (window.own.distance(whole), window.start_s))


def _starts(trace: Trace, length_s: float) -> npt.NDArray[np.float64]:
    """Return where windows may begin: evenly over the trace, with a lead-in before them where there is room."""
    last = trace.duration_s - length_s
    starts = np.unique(np.linspace(min(LEAD_SHARE * length_s, last), last, MOST_STARTS))
    return starts[_counts(trace, starts, length_s) >= LEAST_REQUESTS]


def _counts(trace: Trace, starts: npt.NDArray[np.float64], length_s: float) -> npt.NDArray[np.intp]:
    return np.asarray(np.searchsorted(trace.sent_s, starts + length_s) - np.searchsorted(trace.sent_s, starts))


def _nearest(trace: Trace, starts: npt.NDArray[np.float64], length_s: float) -> list[float]:
    """Return the starts of the windows nearest the whole in rate and lengths."""
    first, count = np.searchsorted(trace.sent_s, starts), _counts(trace, starts, length_s)
    squares = np.log(count / length_s / (len(trace) / trace.duration_s)) ** 2
    for column in (trace.isl, trace.osl):
        sums = np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)])
        mean = (sums[first + count] - sums[first]) / count
        squares += np.log(np.maximum(mean, 1e-9) / max(float(column.mean()), 1e-9)) ** 2
    return [float(start) for start in starts[np.argsort(squares, kind="stable")[:MOST_SHARED]]]


def _window(trace: Trace, start_s: float, length_s: float, whole: TrafficFigures, looked_at: int) -> TrafficWindow:
    lead_s = min(LEAD_SHARE * length_s, start_s)
    before, first, end = np.searchsorted(trace.sent_s, [start_s - lead_s, start_s, start_s + length_s]).tolist()
    part = trace.taken(np.arange(before, end))
    return TrafficWindow(
        trace=part,
        start_s=start_s,
        length_s=length_s,
        lead_s=lead_s,
        lead_requests=first - before,
        begins_s=start_s - float(trace.sent_s[before]),
        own=_figures(part, first - before, length_s),
        whole=whole,
        requests_in_all=len(trace),
        looked_at=looked_at,
    )


def _figures(trace: Trace, lead_requests: int, length_s: float) -> TrafficFigures:
    """Return the figures of what comes after a lead-in, which counts for what was seen before."""
    reuse = reuse_of(trace)
    again = (reuse.between != NEVER) & (reuse.owner >= lead_requests)
    isl, osl = trace.isl[lead_requests:], trace.osl[lead_requests:]
    return TrafficFigures(
        requests_s=len(isl) / length_s,
        input_tokens=float(isl.mean()),
        output_tokens=float(osl.mean()),
        shared=float(reuse.tokens[again].sum()) / max(float(isl.sum()), 1.0),
    )
