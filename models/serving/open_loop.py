"""Replay of an open loop: requests that come at a rate, whatever is in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from models.config import ServerConfig
from models.costs.memory import Memory
from models.layout import table_of
from models.serving.estimate import (
    LONGEST_REPLAY,
    Context,
    InFlight,
    Prediction,
    limits_of,
    predict_many,
    prediction_of,
)
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.step_times import StepTimes
from models.workload import Workload

# Requests that count, at least; and for how many seconds of arrivals where the rate gives more of them.
LEAST_REQUESTS = 200
# A prediction counts more of them: a p99 of 200 requests rests on two.
LEAST_PREDICTED = 1000
WINDOW_S = 60.0
# Before that the server fills up, for as many lives of a request.
WARM_UP_LIVES = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How arrivals and lengths are drawn: the seed, and how many requests count at least."""

    seed: int = 0
    least: int = LEAST_REQUESTS


def replay_open_loop(context: Context, config: ServerConfig, workload: Workload, filled: Memory, draw: Draw) -> Replay:
    """Replay Poisson arrivals at `workload.request_rate`; what comes while the server fills up is not in the result.

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


def predict_open_loop(context: Context, config: ServerConfig, workload: Workload, seed: int = 0) -> Prediction:
    """Predict one resolved configuration under Poisson arrivals at `workload.request_rate` (requests per second).

    `workload.concurrency` is what caps and breakdown are made for: the requests expected in flight.
    """
    filled = context.memory(table_of([config]))
    played = replay_open_loop(context, config, workload, filled, Draw(seed=seed, least=LEAST_PREDICTED))
    found = prediction_of(context, config, workload, filled=filled, played=played)
    return replace(
        found,
        running_requests=played.mean_running,
        in_flight=in_flight(played),
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
