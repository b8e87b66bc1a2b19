"""The stretch of a trace that stands for all of it, and what a rate scale does to sessions."""

from __future__ import annotations

import numpy as np
import pytest

from hwprobe.errors import InputError
from models.traffic.trace import Trace, TraceBuilder
from models.traffic.traced_workload import TracedLoad, mark_of
from models.traffic.window import representative_window


def day(seed: int = 3) -> Trace:
    """Ten minutes behind one system prompt, one request a second at first, six at the peak with longer prompts."""
    rng = np.random.default_rng(seed)
    builder, number = TraceBuilder(form="test"), 0
    for minute in range(10):
        rate = (1, 2, 3, 4, 5, 6, 5, 4, 3, 2)[minute]
        for at in np.sort(rng.uniform(0, 60, int(60 * rate))):
            builder.add(60.0 * minute + float(at), 700 if minute != 5 else 900, 50)
            builder.add_pieces([(1, 512), (100 + number, 188)])
            number += 1
    return builder.trace("test")


def chats() -> Trace:
    """Twenty sessions of three turns, one a second; users think for five seconds."""
    builder = TraceBuilder(form="test")
    for number in range(20):
        for turn in range(3):
            think_s = 5.0 if turn else float("nan")
            builder.add(number + 5.0 * turn, 100 * (turn + 1), 20, session=number, think_s=think_s)
    return builder.trace("test")


def test_the_window_is_as_busy_as_long_and_shares_as_much_as_the_whole() -> None:
    trace = day()
    window = representative_window(trace, 60.0)
    own, whole = window.own, window.whole
    assert own.requests_s == pytest.approx(whole.requests_s, rel=0.1)
    assert own.input_tokens == pytest.approx(whole.input_tokens, rel=0.1)
    assert own.shared == pytest.approx(whole.shared, abs=0.05)
    # and no other stretch of a minute on the same grid is nearer
    for start_s in np.arange(30.0, 530.0, 7.0):
        inside = (trace.sent_s >= start_s) & (trace.sent_s < start_s + 60.0)
        ratio = np.log(inside.sum() / 60.0 / whole.requests_s)
        isl = np.log(trace.isl[inside].mean() / whole.input_tokens)
        assert np.hypot(ratio, isl) >= own.distance(whole) - 0.05


def test_what_comes_before_the_window_is_sent_and_not_counted() -> None:
    window = representative_window(day(), 60.0)
    load = TracedLoad(window=window, mark=mark_of(window, "day.jsonl", 1.0)).workload(8)
    counts = load.counts(load.trace.sent_s)
    assert 0 < window.lead_requests == int((~counts).sum())
    assert int(counts.sum()) == window.requests
    assert load.longest_request == int((load.trace.isl + load.trace.osl).max())


def test_it_is_said_which_window_it_is_and_how_it_compares() -> None:
    window = representative_window(day(), 60.0)
    which, why = window.sentences
    assert f"{window.requests:,} of {window.requests_in_all:,} requests" in which
    assert f"whole {window.whole.requests_s:.3g}" in why
    assert representative_window(day(), 3600.0).sentences[0].startswith("tuned under the whole trace")


def test_the_same_file_gives_the_same_window_and_another_file_another_digest() -> None:
    one, again, other = (representative_window(day(seed), 60.0) for seed in (3, 3, 4))
    assert one.digest() == again.digest() != other.digest()
    assert mark_of(one, "a", 1.0) == mark_of(again, "a", 1.0)


def test_a_window_too_short_for_any_figure_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match="longer --window"):
        representative_window(day(), 0.5)


def test_at_twice_the_rate_sessions_begin_twice_as_often_and_users_think_as_long() -> None:
    trace, scaled = chats(), chats().scaled(2.0)
    assert scaled.sent_s.tolist() == sorted(scaled.sent_s.tolist())
    for session in range(20):
        before = trace.sent_s[trace.session == session]
        after = scaled.sent_s[scaled.session == session]
        assert after[0] == pytest.approx(before[0] / 2.0)
        assert np.diff(after).tolist() == pytest.approx([5.0, 5.0])
        assert scaled.isl[scaled.session == session].tolist() == [100, 200, 300]
