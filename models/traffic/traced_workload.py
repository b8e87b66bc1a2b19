"""TracedWorkload: a load that is a stretch of a trace; what closed forms ask of a workload are its means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.layout import Array
from models.traffic.trace import Trace
from models.traffic.window import TrafficWindow
from models.workload import Lengths, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficMark:
    """Which stretch of which trace: what a run and a launch file keep of it. Times in seconds of the scaled trace.

    `digest` is that of all that is sent, so that another file of the same name is told apart.
    """

    file: str
    rate_scale: float
    start_s: float
    length_s: float
    lead_s: float
    requests: int
    digest: str

    def __str__(self) -> str:
        scale = "" if self.rate_scale == 1.0 else f" x{self.rate_scale:g}"
        return f"{self.file}{scale}, seconds {self.start_s:,.0f} to {self.start_s + self.length_s:,.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedWorkload(Workload):
    """Requests of a trace at their times. Those count that are sent from `begins_s` to `ends_s` of it.

    What is sent before fills the caches; a session that waits long for its answers sends its later turns too late.
    `isl` is the mean of what is new in a prompt: what a cache without end leaves to prefill; `osl` the mean answer,
    `request_rate` the window's, `concurrency` the number expected in flight.
    """

    trace: Trace = field(compare=False, repr=False)
    mark: TrafficMark
    begins_s: float
    ends_s: float

    def counts(self, sent_s: Array) -> npt.NDArray[np.bool_]:
        """Return which requests count, by when they were sent; all of them where none was sent in time."""
        inside: npt.NDArray[np.bool_] = (sent_s >= self.begins_s) & (sent_s < self.ends_s)
        return inside if inside.any() else np.ones(len(sent_s), dtype=bool)

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request, input and output."""
        return int((self.trace.isl + self.trace.osl).max())


def mark_of(window: TrafficWindow, file: str, rate_scale: float) -> TrafficMark:
    """Return what tells this window of this file from others."""
    return TrafficMark(
        file=file,
        rate_scale=rate_scale,
        start_s=round(window.start_s, 3),
        length_s=window.length_s,
        lead_s=round(window.lead_s, 3),
        requests=window.requests,
        digest=window.digest(),
    )


def new_tokens(window: TrafficWindow) -> int:
    """Return the mean prompt tokens of a window that no earlier request had."""
    return max(1, round(window.own.input_tokens * (1.0 - window.own.shared)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLoad:
    """A window and what names it: what a tuning run is asked under a trace."""

    window: TrafficWindow
    mark: TrafficMark

    @property
    def lengths_and_rate(self) -> tuple[int, int, float]:
        """Return the mean new tokens of a prompt, the mean tokens of an answer, and requests per second."""
        own = self.window.own
        return new_tokens(self.window), max(1, round(own.output_tokens)), own.requests_s

    def workload(self, concurrency: int) -> TracedWorkload:
        """Return the window as a load with so many requests expected in flight."""
        window = self.window
        isl, osl, request_rate = self.lengths_and_rate
        return TracedWorkload(
            isl=Lengths(nominal=isl),
            osl=Lengths(nominal=osl),
            concurrency=concurrency,
            request_rate=request_rate,
            trace=window.trace,
            mark=self.mark,
            begins_s=window.begins_s,
            ends_s=math.inf if window.is_whole else window.begins_s + window.length_s,
        )

    def document(self) -> dict[str, Any]:
        """Return which window it is, and how it compares with the whole trace, JSON-ready."""
        window = self.window
        return {
            **asdict(self.mark),
            "lead_requests": window.lead_requests,
            "requests_in_all": window.requests_in_all,
            "figures": asdict(window.own),
            "figures_of_all": asdict(window.whole),
            "why": list(window.sentences),
        }
