"""How servers do under a trace, in a terminal: minute by minute, with and without cache, by router."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from planner.traffic_plans.served import Minute, ServedTrace
from planner.traffic_plans.sizing import TrafficPlan

MOST_MINUTES = 30


def show_traffic_plan(planned: TrafficPlan, screen: Console) -> None:
    """Print what the trace adds to a plan."""
    trace_question, served = planned.asked, planned.served
    if served is None:
        return
    slos = ", ".join(str(slo) for slo in trace_question.slos)
    one = served.servers == 1
    verb = ("keeps" if one else "keep") if planned.plan.meets_target else ("does not keep" if one else "do not keep")
    screen.print(
        f"\n{counted(served.servers, 'server')} {verb} {slos} under {trace_question.name} "
        f"x{trace_question.rate_scale:g}: {served.hit_rate:.1%} of the prompt tokens come from the radix cache"
        + (f", behind a {served.routing} router" if served.servers > 1 else ""),
        markup=False,
    )
    screen.print(_ways(planned))
    if planned.without_cache is not None:
        fewest = planned.servers_without_cache
        need = counted(fewest, "server") if fewest else "more servers than were tried"
        screen.print(f"without the radix cache: {need}", markup=False)
    show_minutes(served.minutes, screen)


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: "1 server", "2 servers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ways(planned: TrafficPlan) -> Table:
    served, without = planned.served, planned.without_cache
    table = Table(box=None, pad_edge=False)
    for name in ("", "hits", "TTFT p50", "TTFT p99", "TPOT mean", "goodput"):
        table.add_column(name, justify="right" if name else "left")
    rows: list[tuple[str, ServedTrace | None]] = [
        (f"{way.value} router", served_way) for way, served_way in planned.routings.items()
    ]
    rows = rows or [("with cache", served)]
    for name, served_way in [*rows, ("no cache", without)]:
        if served_way is not None:
            table.add_row(name, f"{served_way.hit_rate:.1%}", f"{served_way.ttft_ms['p50']:,.0f} ms",
                          f"{served_way.ttft_ms['p99']:,.0f} ms", f"{served_way.tpot_ms['mean']:,.1f} ms",
                          f"{served_way.goodput_rps:,.2f}/s")  # fmt: skip
    return table


def show_minutes(minutes: Sequence[Minute], screen: Console) -> None:
    """Print the minutes, of many the worst by waiting, in their order."""
    worst = sorted(minutes, key=lambda minute: (-minute.missed_share, -minute.waiting))[:MOST_MINUTES]
    shown = sorted(worst, key=lambda minute: minute.minute)
    table = Table(box=None, pad_edge=False)
    for name in ("minute", "requests", "waiting", "TTFT p50", "TTFT p99", "TPOT", "hits", "over SLO"):
        table.add_column(name, justify="right")
    for minute in shown:
        table.add_row(
            f"{minute.minute}", f"{minute.requests}", f"{minute.waiting:,.1f}", f"{minute.ttft_p50_ms:,.0f} ms",
            f"{minute.ttft_p99_ms:,.0f} ms", f"{minute.tpot_mean_ms:,.1f} ms", f"{minute.hit_rate:.0%}",
            f"{minute.missed_share:.0%}",
        )  # fmt: skip
    if len(shown) < len(minutes):
        screen.print(f"\nthe worst {len(shown)} of {len(minutes)} minutes:", markup=False)
    else:
        screen.print()
    screen.print(table)
