"""A point that may not be used says so, and why: faults 12, 13, 15 to 17, 36 and 37."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from tuner.bench.requests import RequestOutcome, Seen
from tuner.bench.verdict import PointRequest, judge
from tuner.bench.window import Window, WindowRules, whole_waves, window_of
from tuner.seam import Verdict


def seen(start: float, *, ttft: float = 0.2, tpot: float = 0.02, tokens: int = 11, **changes: object) -> Seen:
    last = start + ttft + tpot * (tokens - 1)
    fields = {"index": 0, "planned": start, "sent": start, "first": start + ttft, "last": last, "ended": last,
              "isl": 100, "osl": 11, "prompt_tokens": 100, "tokens": tokens, "cached": 0, "chunks": tokens,
              "error": ""}  # fmt: skip
    return Seen(**(fields | changes))  # type: ignore[arg-type]


def outcome(requests: list[Seen], **changes: object) -> RequestOutcome:
    bins: dict[int, int] = {}
    for request in requests:
        for number in range(request.tokens):
            at = int((request.first + number * (request.last - request.first) / max(1, request.tokens - 1)) / 0.1)
            bins[at] = bins.get(at, 0) + 1
    fields = {"seen": requests, "unfinished": [], "tokens_by_bin": bins, "gaps_s": [0.02] * 10,
              "gap_marks": [(10, 0), (20, 10)],
              "lags_s": [(float(at), 0.001) for at in range(100)], "cpu": [(float(at), 0.1) for at in range(100)],
              "longest_gap_s": 0.02, "suspended_s": 0.0}  # fmt: skip
    return RequestOutcome(**(fields | changes))  # type: ignore[arg-type]


def closed_loop(clients: int = 2, rounds: int = 40, request: Callable[[float], Seen] = seen) -> list[Seen]:
    """One request after the other for each client, back to back."""
    found = []
    for client in range(clients):
        now = 0.01 * client
        for _ in range(rounds):
            found.append(request(now))
            now = found[-1].ended
    return found


def judged(
    *outcomes: RequestOutcome, asked: PointRequest | None = None, window: Window | None = None
) -> tuple[Verdict, str]:
    found = window or window_of(outcomes, WindowRules(start=0.5, end=12.0), seed=0)
    return judge(asked or PointRequest(clients=2), found, outcomes, [])


def test_a_sound_closed_loop_is_ok_and_its_figures_are_exact() -> None:
    requests = closed_loop()
    window = window_of([outcome(requests)], WindowRules(start=0.5, end=12.0), seed=0)
    assert judged(outcome(requests)) == (Verdict.OK, "")
    assert window.ttft.by["mean"] == pytest.approx(200.0)
    assert window.tpot.by["p99"] == pytest.approx(20.0)
    assert window.in_flight == pytest.approx(2.0, abs=0.01)
    assert window.output_tok_s == pytest.approx(2 * 11 / 0.4, rel=0.03)
    low, high = window.output_tok_s_interval
    assert low <= window.output_tok_s <= high


def test_clients_in_step_are_measured_over_whole_waves() -> None:
    """Eight clients wait for two seconds, then all get 16 tokens at once: the rate hangs on where a window ends."""
    requests = [seen(2.4 * wave, ttft=2.0, tpot=0.4 / 15, tokens=16, osl=16) for wave in range(9) for _ in range(8)]
    whole = outcome(requests)
    for end in (17.0, 18.0, 19.15):
        found = window_of([whole], WindowRules(start=2.5, end=whole_waves([whole], 2.5, end, 8)), seed=0)
        assert found.output_tok_s == pytest.approx(8 * 16 / 2.4, rel=0.02)
    assert whole_waves([whole], 2.5, 3.0, 8) == 3.0, "no whole wave: the window stays"


def test_fault_12_failing_requests_are_not_speed() -> None:
    number = iter(range(1000))
    every_tenth = closed_loop(request=lambda at: seen(at, error="HTTP 500: oops" if next(number) % 10 == 0 else ""))
    verdict, why = judged(outcome(every_tenth))
    assert verdict is Verdict.ERRORS
    assert "HTTP 500: oops" in why


def test_fault_13_outputs_shorter_than_asked_are_noticed() -> None:
    verdict, why = judged(outcome(closed_loop(request=lambda at: seen(at, osl=12))))
    assert verdict is Verdict.LENGTHS_OFF
    assert "100.0 %" in why


def test_fault_15_a_load_generator_at_its_limit_says_so() -> None:
    requests = closed_loop()
    busy = outcome(requests, cpu=[(float(at), 0.99) for at in range(100)])
    assert judged(busy)[0] is Verdict.CLIENT_LIMITED
    late = outcome(requests, lags_s=[(float(at), 0.1) for at in range(100)])
    assert judged(late)[0] is Verdict.CLIENT_LIMITED
    verdict, why = judged(outcome(requests), asked=PointRequest(clients=3))
    assert verdict is Verdict.CLIENT_LIMITED
    assert "2.0 of 3" in why
    verdict, why = judged(
        outcome([replace_planned(request) for request in requests]), asked=PointRequest(clients=0, rate=5.0)
    )
    assert verdict is Verdict.CLIENT_LIMITED
    assert "200 ms late" in why


def replace_planned(request: Seen) -> Seen:
    import msgspec

    return msgspec.structs.replace(request, planned=request.sent - 0.2)


@pytest.mark.parametrize("growth", [1.004, 0.996])
def test_fault_16_a_window_that_drifts_is_unsteady(growth: float) -> None:
    speed = [0.02]

    def request(at: float) -> Seen:
        speed[0] *= growth
        return seen(at, tpot=speed[0])

    requests = [request(0.4 * number) for number in range(90)]
    window = window_of([outcome(requests)], WindowRules(start=0.0, end=40.0), seed=0)
    verdict, why = judge(PointRequest(clients=1), replace(window, in_flight=1.0), [outcome(requests)], [])
    assert verdict is Verdict.UNSTEADY
    assert ("slower" if growth > 1 else "faster") in why


def test_fault_17_prompts_served_from_the_cache_are_not_throughput() -> None:
    cached = outcome(closed_loop(request=lambda at: seen(at, cached=64)))
    verdict, why = judged(cached)
    assert verdict is Verdict.CACHE_POLLUTED
    assert "64.0 %" in why
    shared = window_of([cached], WindowRules(start=0.5, end=12.0, shared_prefix=64), seed=0)
    assert judge(PointRequest(clients=2), shared, [cached], [])[0] is Verdict.OK, (
        "a prefix shared on purpose is no leak"
    )


def test_fault_13_a_text_may_be_of_any_length_its_answer_may_not() -> None:
    asked = PointRequest(clients=2, text=True)
    assert judged(outcome(closed_loop(request=lambda at: seen(at, isl=0))), asked=asked)[0] is Verdict.OK
    short = outcome(closed_loop(request=lambda at: seen(at, isl=0, osl=12)))
    assert judged(short, asked=asked)[0] is Verdict.LENGTHS_OFF


def test_fault_17_a_dataset_that_repeats_itself_is_not_throughput() -> None:
    asked = PointRequest(clients=2, text=True)
    alike = outcome(closed_loop(request=lambda at: seen(at, isl=0, cached=5)))
    assert judged(alike, asked=asked)[0] is Verdict.OK, "people begin alike"
    verdict, why = judged(outcome(closed_loop(request=lambda at: seen(at, isl=0, cached=64))), asked=asked)
    assert verdict is Verdict.CACHE_POLLUTED
    assert "dataset" in why


def test_an_open_loop_is_judged_by_the_requests_due_in_its_window() -> None:
    slow = [seen(0.5 * number, ttft=30.0) for number in range(20)]
    window = window_of([outcome(slow)], WindowRules(start=1.0, end=5.0, open_loop=True), seed=0)
    assert window.requests == 9, "their ends lie behind the window"
    assert window.ttft.by["mean"] == pytest.approx(30e3)
    queued = [(1.0 + 0.5 * number, 1.0 + 0.5 * number) for number in range(8)]
    overrun = outcome(slow[:2], unfinished=queued)
    window = window_of([overrun], WindowRules(start=0.0, end=5.0, open_loop=True), seed=0)
    verdict, why = judge(PointRequest(clients=0, rate=2.0), window, [overrun], [])
    assert (window.unended, verdict) == (8, Verdict.UNSTEADY)
    assert "more arrive than the server serves" in why


def test_chunk_gaps_are_those_of_the_window() -> None:
    found = outcome(closed_loop(), gaps_s=[9.0] * 10 + [0.02] * 50 + [9.0] * 5, gap_marks=[(2, 0), (5, 10), (120, 60)])
    assert window_of([found], WindowRules(start=0.5, end=12.0), seed=0).chunk_gap.by["mean"] == pytest.approx(20.0)


def test_throttled_gpus_are_named() -> None:
    requests = outcome(closed_loop())
    window = window_of([requests], WindowRules(start=0.5, end=12.0), seed=0)
    assert judge(PointRequest(clients=2), window, [requests], ["power cap"]) == (
        Verdict.THROTTLED,
        "the GPUs were held back: power cap",
    )


def test_fault_36_a_clock_that_jumps_or_a_suspended_machine_spoils_the_point() -> None:
    assert judged(outcome(closed_loop(), longest_gap_s=6.0))[0] is Verdict.CLOCK_JUMP
    assert judged(outcome(closed_loop(), suspended_s=30.0))[0] is Verdict.CLOCK_JUMP


@pytest.mark.parametrize("figure", [math.nan, math.inf, -1.0])
def test_fault_37_impossible_figures_are_measurement_errors(figure: float) -> None:
    requests = outcome(closed_loop())
    window = window_of([requests], WindowRules(start=0.5, end=12.0), seed=0)
    broken = replace(window, tpot=replace(window.tpot, by={**window.tpot.by, "mean": figure}))
    assert judged(requests, window=broken)[0] is Verdict.IMPOSSIBLE
    assert judged(requests, window=replace(window, output_tok_s=figure))[0] is Verdict.IMPOSSIBLE


def test_fault_37_a_rate_above_the_roofline_is_refused() -> None:
    verdict, why = judged(outcome(closed_loop()), asked=PointRequest(clients=2, roofline_tok_s=50.0))
    assert verdict is Verdict.IMPOSSIBLE
    assert "(50)" in why
