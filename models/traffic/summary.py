"""What a trace holds: lengths, arrivals and their bursts, sessions, and what prompts share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.layout import Array
from models.traffic.hit_curve import NEVER, HitCurve, hit_curve, reuse_of
from models.traffic.trace import NO_SESSION, Ints, Trace

MINUTE_S = 60.0
MOST_BINS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Mean and percentiles of a length in tokens, or of a time in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Array | Ints) -> Distribution:
        """Return the spread of values, all zero for none."""
        if not len(values):
            return cls(mean=0.0, p50=0.0, p90=0.0, p99=0.0, most=0.0)
        p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
        return cls(mean=float(values.mean()), p50=p50, p90=p90, p99=p99, most=float(values.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests come: per second on average and in the busiest minute, and how unevenly.

    `gap_cv` is the coefficient of variation of the gaps (Poisson: 1); `dispersion` the variance of the requests of a
    minute over their mean (Poisson: 1; 0 where there is but one minute). `bins` counts requests by `bin_s` seconds.
    """

    mean_rate: float
    busiest_minute_rate: float
    gap_cv: float
    dispersion: float
    bin_s: float
    bins: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSummary:
    """A trace in numbers; `shared_tokens` of each prompt are those an earlier prompt or answer began with."""

    form: str
    requests: int
    duration_s: float
    sessions: int
    turns: Distribution
    think_s: Distribution
    input_tokens: Distribution
    output_tokens: Distribution
    arrivals: Arrivals
    curve: HitCurve
    shared_tokens: Distribution
    requests_that_share: int
    notes: tuple[str, ...]


def summary(trace: Trace) -> TrafficSummary:
    """Return what a trace holds."""
    reuse = reuse_of(trace)
    again = reuse.between != NEVER
    shared = np.bincount(reuse.owner[again], weights=reuse.tokens[again], minlength=len(trace))
    thinking = trace.think_s[~np.isnan(trace.think_s)]
    return TrafficSummary(
        form=trace.form,
        requests=len(trace),
        duration_s=trace.duration_s,
        sessions=trace.sessions,
        turns=Distribution.of(_turns(trace.session)),
        think_s=Distribution.of(thinking),
        input_tokens=Distribution.of(trace.isl),
        output_tokens=Distribution.of(trace.osl),
        arrivals=arrivals_of(trace.sent_s),
        curve=hit_curve(trace, reuse),
        shared_tokens=Distribution.of(shared),
        requests_that_share=int((shared > 0).sum()),
        notes=trace.notes,
    )


def _turns(session: npt.NDArray[np.int32]) -> Ints:
    """Return the requests of each session, 1 for those that belong to none."""
    named = session[session != NO_SESSION]
    counts = np.bincount(named) if len(named) else np.zeros(0, dtype=np.int64)
    return np.concatenate([counts[counts > 0], np.ones(len(session) - len(named), dtype=np.int64)])


def arrivals_of(sent_s: Array) -> Arrivals:
    """Return how unevenly requests come; `sent_s` ascends from 0."""
    duration_s = float(sent_s[-1])
    gaps = np.diff(sent_s)
    mean_gap = float(gaps.mean()) if len(gaps) else 0.0
    minutes = np.bincount((sent_s / MINUTE_S).astype(np.int64))
    whole = minutes[:-1] if len(minutes) > 1 else minutes
    bin_s = max(1.0, float(np.ceil(duration_s / MOST_BINS)))
    busiest = float(minutes.max()) / min(MINUTE_S, duration_s) if duration_s else 0.0
    return Arrivals(
        mean_rate=len(gaps) / duration_s if duration_s else 0.0,
        busiest_minute_rate=busiest,
        gap_cv=float(gaps.std() / mean_gap) if mean_gap > 0 else 0.0,
        dispersion=float(whole.var() / whole.mean()) if len(whole) > 1 and whole.mean() > 0 else 0.0,
        bin_s=bin_s,
        bins=tuple(np.bincount((sent_s / bin_s).astype(np.int64)).tolist()),
    )
