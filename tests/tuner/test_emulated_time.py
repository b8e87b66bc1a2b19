"""The emulated server tells its clients in time, on a machine whose timers ring late."""

from __future__ import annotations

from tuner.emulator.driver import LEARNED, MOST_LATE_S, Punctuality


def lateness_s(timer: Punctuality, late_s: float, wakings: int) -> list[float]:
    """Let a timer ring so many times, each time `late_s` after it was set to; return how late after it was due."""
    rung = []
    for _ in range(wakings):
        rung.append(late_s - timer.ahead_s)
        timer.woke(rung[-1])
    return rung


def test_a_timer_that_always_rings_late_is_set_earlier_until_it_is_in_time() -> None:
    rung = lateness_s(Punctuality(most_s=0.005), 0.0012, 100)
    assert rung[0] == 0.0012
    assert abs(sum(rung[50:]) / 50) < 1e-4


def test_a_machine_that_stood_still_once_is_no_habit() -> None:
    timer = Punctuality(most_s=0.005)
    timer.woke(0.5)
    assert timer.ahead_s == LEARNED * MOST_LATE_S
    lateness_s(timer, 0.0, 50)
    assert timer.ahead_s < 1e-5


def test_a_server_that_cannot_keep_up_tells_no_earlier_than_half_of_a_front_ends_time() -> None:
    timer = Punctuality(most_s=0.005)
    for _ in range(1000):
        timer.woke(0.1)
    assert timer.ahead_s == 0.005
