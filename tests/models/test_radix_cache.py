"""The radix cache of the replay, and traces replayed with and without it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context, limits_of
from models.serving.radix_cache import PromptPath, RadixCache
from models.serving.replay import ReplayLoad, replay
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from models.serving.trace_replay import Routing, TraceReplay, TraceServers, replay_trace
from models.traffic.trace import Trace, TraceBuilder
from planner.sglang.resolver import resolve

TP8 = ServerConfig(tp_size=8)


@pytest.fixture
def server(context: Callable[..., Context]) -> tuple[StepTimes, Limits]:
    h200 = context()
    config = resolve(TP8, h200.arch, h200.machine, h200.version).config
    table = table_of([config])
    kv_tokens = float(h200.memory(table).kv_tokens[0])
    times = StepTimes(h200.system(table), acceptance=h200.acceptance, largest_batch=512)
    return times, limits_of(config, table, kv_tokens)


def played(server: tuple[StepTimes, Limits], trace: Trace, **how: object) -> TraceReplay:
    times, limits = server
    if "kv_tokens" in how:
        limits = replace(limits, kv_tokens=how.pop("kv_tokens"))
    return replay_trace(trace, TraceServers(times=times, limits=limits, **how))  # type: ignore[arg-type]


def path_of(pieces: list[int], size: int = 3) -> PromptPath:
    return PromptPath(pieces, [size * (at + 1) for at in range(len(pieces))])


@pytest.mark.parametrize("page", [1, 2, 4])
def test_a_match_is_the_longest_beginning_that_was_kept_in_whole_pages(page: int) -> None:
    rng = random.Random(page)
    tree, kept = RadixCache(page=page), []
    for number in range(300):
        head = list(rng.choice(kept)) if kept and rng.random() < 0.8 else []
        head = head[: rng.randint(0, len(head))]
        # a piece has one number behind one beginning only
        pieces = head + [number * 10 + at for at in range(rng.randint(0 if head else 1, 4))]
        path = path_of(pieces)
        tokens = [(piece, place) for piece in pieces for place in range(3)]
        whole = [[(piece, place) for piece in other for place in range(3)] for other in kept]
        longest = max((_common(tokens, other, page) for other in whole), default=0)
        assert tree.match(path, len(tokens)).end == longest
        tree.insert(path, len(tokens))
        kept.append(pieces)


def _common(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], page: int) -> int:
    """Tokens both begin with; each was kept to its last whole page."""
    until = min(len(ours) - len(ours) % page, len(theirs) - len(theirs) % page)
    same = next((at for at in range(until) if ours[at] != theirs[at]), until)
    return same - same % page


def test_what_is_locked_stays_and_the_oldest_leaf_goes_first() -> None:
    tree = RadixCache()
    for pieces in ([1, 2], [1, 3], [4]):
        tree.insert(path_of(pieces), 3 * len(pieces))
    held = tree.match(path_of([1, 2]), 6)
    tree.lock(held)
    assert (tree.locked, tree.evictable) == (6, 6)
    assert tree.evict(1) == 3
    assert tree.match(path_of([1, 3]), 6).end == 3  # the oldest leaf is gone, its parent is needed by another
    assert tree.evict(100) == 3
    tree.unlock(held)
    assert tree.evict(100) == 6
    assert (tree.locked, tree.evictable) == (0, 0)


def separate(count: int = 400) -> tuple[Trace, np.ndarray]:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(0.4, count))
    builder = TraceBuilder(form="test")
    for at_s, isl, osl in zip(arrivals.tolist(), rng.integers(100, 3000, count).tolist(),
                              rng.integers(10, 500, count).tolist(), strict=True):  # fmt: skip
        builder.add(at_s, isl, osl)
    return builder.trace("test"), arrivals - arrivals[0]


@pytest.mark.parametrize("cache", [False, True])
def test_requests_that_share_nothing_are_served_as_without_a_trace(
    server: tuple[StepTimes, Limits], cache: bool
) -> None:
    trace, arrivals = separate()
    load = ReplayLoad(isl=trace.isl, osl=trace.osl, concurrency=len(trace), arrivals_s=arrivals)
    plain, seen = replay(*server, load), played(server, trace, cache=cache)
    assert seen.cached.sum() == 0
    assert seen.ttft_s.mean() == pytest.approx(plain.ttft_s.mean(), rel=1e-9)
    assert seen.e2e_s.mean() == pytest.approx(plain.e2e_s.mean(), rel=1e-9)


def sharing(count: int = 200, apart_s: float = 0.5) -> Trace:
    builder = TraceBuilder(form="test")
    for number in range(count):
        builder.add(number * apart_s, 4000, 100)
        builder.add_blocks([0, 1, 2, 3, 4, 5, 6, 100 + number], 512)
    return builder.trace("test")


def test_a_shared_system_prompt_is_prefilled_once(server: tuple[StepTimes, Limits]) -> None:
    trace = sharing()
    hot, cold = played(server, trace), played(server, trace, cache=False)
    assert hot.cached.tolist() == [0] + [7 * 512] * 199
    assert hot.ttft_s[1:].mean() < 0.7 * cold.ttft_s[1:].mean()


def test_a_full_cache_forgets_and_never_holds_more_than_there_is(server: tuple[StepTimes, Limits]) -> None:
    builder = TraceBuilder(form="test")
    for number in range(60):
        builder.add(number * 3.0, 2000, 20)
        builder.add_blocks([number % 20 * 10, number % 20 * 10 + 1, number % 20 * 10 + 2, number % 20 * 10 + 3], 512)
    trace = builder.trace("test")
    assert played(server, trace).hit_rate > 0.6
    small = played(server, trace, kv_tokens=10_000)
    assert small.hit_rate == 0.0
    assert small.peak_kv_tokens <= 10_000


def test_a_turn_waits_for_the_answer_before_it_and_hits_it_but_for_its_last_token(
    server: tuple[StepTimes, Limits],
) -> None:
    builder = TraceBuilder(form="test")
    builder.add(0.0, 1000, 300, session=0)
    builder.add_pieces([(1, 1000), (2, 300)], 1)
    builder.add(5.0, 1400, 50, session=0, think_s=5.0)
    builder.add_pieces([(1, 1000), (2, 300), (3, 100)])
    seen = played(server, builder.trace("test"))
    assert seen.sent_s[1] == pytest.approx(seen.end_s[0] + 5.0)
    assert seen.cached.tolist() == [0, 1299]


def test_a_router_that_knows_prefixes_hits_more_than_one_that_takes_turns(server: tuple[StepTimes, Limits]) -> None:
    builder = TraceBuilder(form="test")
    for number in range(300):
        builder.add(number * 0.2, 3100, 50)
        builder.add_blocks([number % 30 * 10 + at for at in range(6)] + [1000 + number], 512)
    trace = builder.trace("test")
    rates = {way: played(server, trace, count=4, routing=way).hit_rate for way in Routing}
    assert rates[Routing.CACHE_AWARE] > rates[Routing.ROUND_ROBIN] + 0.05
    spread = played(server, trace, count=4).server
    assert math.isclose(np.bincount(spread, minlength=4).min(), 75, abs_tol=40)
