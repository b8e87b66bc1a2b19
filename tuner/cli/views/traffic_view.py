"""How a trace looks in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from models.traffic.summary import TrafficSummary

BLOCKS = " ▁▂▃▄▅▆▇█"
BARS = 60


def show_traffic(summary: TrafficSummary, screen: Console) -> None:
    """Print lengths, arrivals, and what a cache of each size would hit."""
    screen.print(
        f"{summary.requests:,} requests in {summary.duration_s:,.0f} s, {summary.sessions:,} sessions ({summary.form})",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for column in ("", "mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    rows = [("input tokens", summary.input_tokens), ("output tokens", summary.output_tokens),
            ("shared of a prompt", summary.shared_tokens)]  # fmt: skip
    if summary.turns.most > 1:
        rows += [("turns a session", summary.turns), ("think time, s", summary.think_s)]
    for name, spread in rows:
        table.add_row(name, *(f"{value:,.4g}" if value < 100 else f"{value:,.0f}" for value in (
            spread.mean, spread.p50, spread.p90, spread.p99, spread.most)))  # fmt: skip
    screen.print(table)
    arrivals = summary.arrivals
    screen.print(
        f"\n{arrivals.mean_rate:,.3g} requests/s, {arrivals.busiest_minute_rate:,.3g} in the busiest minute; "
        f"gaps vary by {arrivals.gap_cv:.2f} of their mean (Poisson 1)",
        markup=False,
    )
    screen.print(_bars(arrivals.bins), markup=False)
    curve = summary.curve
    screen.print(
        f"\n{curve.unbounded:.1%} of the prompt tokens were in an earlier prompt or answer; "
        f"{summary.requests_that_share:,} requests share",
        markup=False,
    )
    if curve.unbounded:
        sizes = Table(box=None, pad_edge=False)
        sizes.add_column("radix cache, tokens", justify="right")
        sizes.add_column("hits", justify="right")
        worth = [at for at, rate in enumerate(curve.hit_rate) if rate > 0.0]
        for at in worth:
            sizes.add_row(f"{curve.cache_tokens[at]:,}", f"{curve.hit_rate[at]:.1%}")
        screen.print(sizes)
    for note in summary.notes:
        screen.print(note, markup=False)


def _bars(counts: tuple[int, ...]) -> str:
    """Draw counts over time in one line of at most 60 characters."""
    wide = -(-len(counts) // BARS)
    sums = [sum(counts[at : at + wide]) for at in range(0, len(counts), wide)]
    most = max(sums)
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // most)] for count in sums)
