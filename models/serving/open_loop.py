"""Replay of an open loop: requests that come at a rate, whatever is in flight."""

from __future__ import annotations

import math

import numpy as np

from models.config import ServerConfig
from models.costs.memory import Memory
from models.layout import table_of
from models.serving.estimate import LONGEST_REPLAY, Context, limits_of, predict_many
from models.serving.replay import Replay, replay
from models.serving.step_times import StepTimes
from models.workload import Workload

# Requests that count, at least; and for how many seconds of arrivals where the rate gives more of them.
LEAST_REQUESTS = 200
WINDOW_S = 60.0
# Before that the server fills up, for as many lives of a request.
WARM_UP_LIVES = 1.5


def replay_open_loop(
    context: Context, config: ServerConfig, workload: Workload, filled: Memory, seed: int = 0
) -> Replay:
    """Replay Poisson arrivals at `workload.request_rate`; what comes while the server fills up is not in the result.

    At most LONGEST_REPLAY requests are replayed: a queue that grows without end is seen to grow so long.
    """
    rate = float(workload.request_rate or 1.0)
    table = table_of([config])
    life_s = float(predict_many(context, table, workload, filled).e2e_s[0])
    counted = min(LONGEST_REPLAY // 2, max(LEAST_REQUESTS, math.ceil(rate * WINDOW_S)))
    before = min(LONGEST_REPLAY - counted, math.ceil(WARM_UP_LIVES * rate * life_s))
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate, size=before + counted))
    kv_tokens, most_running = float(filled.kv_tokens[0]), float(table.most_running[0])
    largest = int(min(before + counted, most_running))
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=largest)
    isl, osl = (lengths.sample(before + counted, rng) for lengths in (workload.isl, workload.osl))
    return replay(
        times, limits_of(config, table, kv_tokens), isl, osl, concurrency=before + counted, measure_from=before,
        arrivals_s=arrivals_s,
    )  # fmt: skip
