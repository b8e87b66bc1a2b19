"""Replay of an open loop: requests that come at a rate, regardless of those in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.config import ServerConfig
from models.costs.memory import Memory
from models.layout import table_of
from models.serving.estimate import (
    LEAST_SERVED,
    LONGEST_REPLAY,
    Context,
    InFlight,
    Prediction,
    limits_of,
    predict_many,
    prediction_of,
    replay_workload,
)
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.step_times import StepTimes
from models.serving.uncertainty import BAND_SIGMAS
from models.workload import Workload

# Requests that count, at least; and for how many seconds of arrivals where the rate gives more of them.
LEAST_REQUESTS = 200
# A prediction counts more of them: a p99 of 200 requests rests on two.
LEAST_PREDICTED = 1000
WINDOW_S = 60.0
# Before that the server fills up, for as many lives of a request.
WARM_UP_LIVES = 1.5
# A queue is seen to grow in a replay of so many lives of a request; of a shorter one the server's limit is asked.
LIVES_SEEN = 4.0
# Windows whose mean TTFT scatters by more (one standard deviation, relative) are spoken of.
MUCH_CHANCE = 0.15
# Clients per request that runs, with which somebody is always in line.
QUEUED = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How arrivals and lengths are drawn: the seed, and how many requests count at least."""

    seed: int = 0
    least: int = LEAST_REQUESTS


def replay_open_loop(context: Context, config: ServerConfig, workload: Workload, filled: Memory, draw: Draw) -> Replay:
    """Replay Poisson arrivals at `workload.request_rate`; requests that come while the server fills up are left out.

    `filled` is the configuration's ledger. At most LONGEST_REPLAY requests are replayed: a queue that grows without
    end is seen to grow so long.
    """
    rate = float(workload.request_rate or 1.0)
    table = table_of([config])
    life_s = float(predict_many(context, table, workload, filled).e2e_s[0])
    counted = min(LONGEST_REPLAY // 2, max(draw.least, math.ceil(rate * WINDOW_S)))
    before = min(LONGEST_REPLAY - counted, math.ceil(WARM_UP_LIVES * rate * life_s))
    rng = np.random.default_rng(draw.seed)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate, size=before + counted))
    kv_tokens, most_running = float(filled.kv_tokens[0]), float(table.most_running[0])
    largest = int(min(before + counted, most_running))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    isl, osl = (lengths.sample(before + counted, rng) for lengths in (workload.isl, workload.osl))
    load = ReplayLoad(isl=isl, osl=osl, concurrency=before + counted, arrivals_s=arrivals_s)
    return replay(times, limits_of(config, table, kv_tokens), load, measure_from=before)


def predict_open_loop(context: Context, config: ServerConfig, workload: Workload, draws: int = 1) -> Prediction:
    """Predict one resolved configuration under Poisson arrivals at `workload.request_rate` (requests per second).

    `workload.concurrency` is what caps and breakdown are made for: the requests expected in flight. Beyond what the
    server can answer there is no steady state: the prediction is then that of the server at its limit, and says so.
    `draws` streams of arrivals are replayed and taken together: near the limit a p99 of one of them is chance, and the
    mean too. What they differ by is in the bands, and said where it is much.
    """
    filled = context.memory(table_of([config]))
    streams = [
        replay_open_loop(context, config, workload, filled, Draw(seed=seed, least=LEAST_PREDICTED))
        for seed in range(draws)
    ]
    played, flight = _together(streams), _flight_of(streams)
    rate = float(workload.request_rate or 1.0)
    if flight.grows or too_short(played, rate):
        at_limit = _at_limit(context, config, workload, filled)
        if flight.grows or at_limit.request_rate < LEAST_SERVED * rate:
            return without_end(at_limit, rate)
    # What comes is answered: the rate of a replay's own arrivals is off by their scatter.
    steady = replace(played, output_tok_s=rate * workload.osl.mean)
    prediction = prediction_of(context, config, workload, filled=filled, played=steady)
    return replace(
        prediction,
        band=prediction.band if draws == 1 else _widened(prediction.band, _chance(streams)),
        running_requests=played.mean_running,
        request_rate=rate,
        in_flight=flight,
        warnings=(*prediction.warnings, *_chance_warning(streams)),
    )


def _chance(streams: Sequence[Replay]) -> dict[str, float]:
    """Return by what windows differ through their arrivals alone: one standard deviation of the logarithms."""
    means = {"tpot_mean_ms": [each.tpot_s.mean() for each in streams],
             "ttft_mean_ms": [each.ttft_s.mean() for each in streams]}  # fmt: skip
    # A single output token has no TPOT.
    return {name: float(np.std(np.log(of_windows))) if min(of_windows) > 0.0 else 0.0
            for name, of_windows in means.items()}  # fmt: skip


def _widened(band: dict[str, tuple[float, float]], chance: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return 90 % bands with the errors of `chance` (relative standard deviations) added to their own."""
    wider = dict(band)
    for name, error in chance.items():
        low, high = band[name]
        middle, own = math.sqrt(low * high), math.log(high / low) / (2.0 * BAND_SIGMAS)
        factor = math.exp(BAND_SIGMAS * math.hypot(own, error))
        wider[name] = (middle / factor, middle * factor)
    return wider


def _chance_warning(streams: Sequence[Replay]) -> tuple[str, ...]:
    """Say what windows show by chance, where that is much."""
    means_ms = [1e3 * float(each.ttft_s.mean()) for each in streams]
    if _chance(streams)["ttft_mean_ms"] < MUCH_CHANCE:
        return ()
    return (
        f"near its limit TTFT is chance: of {len(streams)} windows of {len(streams[0].ttft_s):,} requests at this rate "
        f"the mean is {min(means_ms):,.0f} to {max(means_ms):,.0f} ms",
    )


def _together(streams: Sequence[Replay]) -> Replay:
    """Return what all replayed requests saw; the server's totals are means."""
    if len(streams) == 1:
        return streams[0]
    per_request: dict[str, Any] = {
        name: np.concatenate([getattr(each, name) for each in streams])
        for name in ("ttft_s", "tpot_s", "e2e_s", "finish_s", "osl")
    }
    return replace(
        streams[0],
        **per_request,
        duration_s=float(np.mean([each.duration_s for each in streams])),
        mean_running=float(np.mean([each.mean_running for each in streams])),
        peak_kv_tokens=max(each.peak_kv_tokens for each in streams),
        retractions=sum(each.retractions for each in streams),
    )


def _flight_of(streams: Sequence[Replay]) -> InFlight:
    flights = [in_flight(each) for each in streams]
    return InFlight(
        mean=float(np.mean([each.mean for each in flights])),
        p99=float(np.mean([each.p99 for each in flights])),
        served_share=float(np.mean([each.served_share for each in flights])),
    )


def too_short(played: Replay, rate: float) -> bool:
    """Say whether a replay at `rate` (1/s) ends within a few lives of a request: too soon to see a queue grow."""
    return LONGEST_REPLAY / rate < LIVES_SEEN * float(played.e2e_s.mean())


def _at_limit(context: Context, config: ServerConfig, workload: Workload, filled: Memory) -> Prediction:
    """Predict the configuration with always somebody in line: what it answers at most."""
    crowd = crowd_of(config, workload, filled)
    played = replay_workload(context, config, crowd, filled)
    return prediction_of(context, config, crowd, filled=filled, played=played)


def crowd_of(config: ServerConfig, workload: Workload, filled: Memory) -> Workload:
    """Return the closed loop with which somebody is always in line."""
    each = workload.isl.mean + workload.osl.mean
    runnable = min(float(table_of([config]).most_running[0]), float(filled.kv_tokens[0]) / each)
    return replace(workload, concurrency=max(1, math.ceil(QUEUED * runnable)), request_rate=None)


def without_end(at_limit: Prediction, rate: float) -> Prediction:
    """Return the prediction of a server at its limit as that of arrivals at a higher `rate` (1/s)."""
    endless = dict.fromkeys(at_limit.ttft_ms, math.inf)
    share = min(at_limit.request_rate / rate, LEAST_SERVED - 0.01)
    return replace(
        at_limit,
        ttft_ms=endless,
        e2e_ms=endless,
        user_tok_s_with_wait=0.0,
        band={**at_limit.band, "ttft_mean_ms": (math.inf, math.inf)},
        in_flight=InFlight(mean=math.inf, p99=math.inf, served_share=share),
    )


def in_flight(played: Replay) -> InFlight:
    """Return the requests in flight over the replay's time: each from when it was sent until its last token."""
    ends, sent = played.finish_s, played.finish_s - played.e2e_s
    times = np.concatenate([sent, ends])
    order = np.argsort(times, kind="stable")
    level = np.cumsum(np.concatenate([np.ones(len(sent)), -np.ones(len(ends))])[order])[:-1]
    spans = np.diff(times[order])
    # Requests of the warm-up are not in the result, those after it not yet: the middle is complete, where there is one.
    inside = (times[order][:-1] >= ends[0]) & (times[order][:-1] < sent.max())
    if spans[inside].sum() > 0.0:
        level, spans = level[inside], spans[inside]
    by_level = np.argsort(level, kind="stable")
    share = np.cumsum(spans[by_level]) / spans.sum()
    return InFlight(
        mean=float((level * spans).sum() / spans.sum()),
        p99=float(level[by_level][np.searchsorted(share, 0.99)]),
        served_share=min(1.0, float(np.ptp(sent) / max(np.ptp(ends), 1e-9))),
    )
