"""Traces: what prompts share, the hit rate of caches of any size, and smaller traces like a long one."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest

from models.traffic.hit_curve import NEVER, hit_curve, reuse_of
from models.traffic.smaller import thinned
from models.traffic.summary import summary
from models.traffic.trace import Trace, TraceBuilder

BLOCK = 4


def random_requests(seed: int, count: int = 60) -> list[tuple[list[int], int]]:
    """Prompts of a few blocks, most of them beginning like an earlier one; with output lengths."""
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for _ in range(count):
        head = rng.choice(prompts) if prompts and rng.random() < 0.7 else []
        head = head[: rng.randint(1, len(head))] if head else []
        prompts.append(head + [rng.randrange(10**6) for _ in range(rng.randint(0 if head else 1, 4))])
    return [(prompt, rng.randint(0, 5)) for prompt in prompts]


def trace_of(requests: list[tuple[list[int], int]]) -> Trace:
    builder = TraceBuilder(form="test")
    for number, (blocks, osl) in enumerate(requests):
        builder.add(float(number), len(blocks) * BLOCK, osl)
        builder.add_blocks(blocks, BLOCK)
    return builder.trace("test")


def hits_token_by_token(requests: list[tuple[list[int], int]], size: int) -> int:
    """An LRU cache of single tokens that evicts the end of a prompt before its beginning."""
    cache: OrderedDict[object, None] = OrderedDict()
    hits = 0
    for number, (blocks, osl) in enumerate(requests):
        prompt = [(tuple(blocks[: at + 1]), token) for at in range(len(blocks)) for token in range(BLOCK)]
        for key in prompt:
            if key not in cache:
                break
            hits += 1
        for key in reversed([*prompt, *((number, token) for token in range(osl))]):
            cache.pop(key, None)
            cache[key] = None
        while len(cache) > size:
            cache.popitem(last=False)
    return hits


@pytest.mark.parametrize("seed", range(8))
def test_one_pass_gives_the_hits_of_every_cache_size_to_the_token(seed: int) -> None:
    requests = random_requests(seed)
    reuse = reuse_of(trace_of(requests))
    again = reuse.between != NEVER
    for size in (10, 40, 100, 300, 10**6):
        held = int(np.clip(size - reuse.between[again], 0, reuse.tokens[again]).sum())
        assert held == hits_token_by_token(requests, size), size


def test_equal_blocks_behind_different_beginnings_are_not_shared() -> None:
    assert hit_curve(trace_of([([1, 2], 0), ([3, 2], 0)])).unbounded == 0.0
    assert hit_curve(trace_of([([1, 2], 0), ([1, 3], 0)])).unbounded == 0.25


def test_a_larger_cache_never_hits_less_and_the_largest_hits_all_there_is() -> None:
    curve = hit_curve(trace_of(random_requests(3, 400)))
    assert list(curve.hit_rate) == sorted(curve.hit_rate)
    assert curve.hit_rate[-1] == pytest.approx(curve.unbounded)


def test_a_thinned_trace_keeps_whole_sessions_and_their_lengths() -> None:
    builder = TraceBuilder(form="test")
    for number in range(1000):
        session = number % 100
        builder.add(float(number), 100 + session, 10, session=session)
        builder.add_pieces([(session, 50), (1000 + number, 50 + session)])
    trace = builder.trace("test")
    smaller = thinned(trace, 200)
    counts = np.unique(smaller.session, return_counts=True)[1]
    assert set(counts.tolist()) == {10}
    assert len(smaller) == 200
    assert summary(smaller).curve.unbounded == pytest.approx(summary(trace).curve.unbounded, rel=0.05)


def test_gaps_of_a_poisson_process_vary_as_much_as_their_mean() -> None:
    rng = np.random.default_rng(0)
    builder = TraceBuilder(form="test")
    for moment in np.cumsum(rng.exponential(0.5, 20_000)).tolist():
        builder.add(moment, 100, 10)
    arrivals = summary(builder.trace("test")).arrivals
    assert arrivals.gap_cv == pytest.approx(1.0, abs=0.03)
    assert arrivals.dispersion == pytest.approx(1.0, abs=0.3)
    assert arrivals.mean_rate == pytest.approx(2.0, rel=0.03)
