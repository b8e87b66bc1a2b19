"""How a measurement under a trace looks in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tuner.choices import SIMULATED


def show_bench_traffic(document: dict[str, Any], screen: Console) -> None:
    """Print latencies, hits against those expected, TTFT by cached share, and the minutes."""
    seen = document["traffic"]
    if document["simulated"]:
        screen.print(SIMULATED, markup=False)
    screen.print(
        f"{seen['requests']:,} requests of {seen['file']} in {seen['duration_s']:,.1f} s, {seen['errors']} errors; "
        f"sent {seen['lateness_ms']['p99']:,.1f} ms late at p99\n"
        f"TTFT {seen['ttft_ms']['mean']:,.0f} ms mean, {seen['ttft_ms']['p99']:,.0f} ms p99; TPOT "
        f"{seen['tpot_ms']['mean']:,.2f} ms; {seen['output_tok_s']:,.1f} output tok/s; goodput "
        f"{seen['goodput_rps']:,.3f} requests/s\n"
        f"cached: {seen['cached_tokens']:,} prompt tokens ({seen['hit_rate']:.1%}); expected "
        f"{seen['expected_cached_tokens']:,} to {seen['expected_at_most_tokens']:,}; as expected in "
        f"{seen['hits_as_expected']:,} requests",
        markup=False,
    )
    shares = Table(box=None, pad_edge=False)
    for name in ("cached share", "requests", "TTFT mean", "TTFT p99"):
        shares.add_column(name, justify="right")
    for row in seen["ttft_by_cached_share"]:
        shares.add_row(f"{row['from']:.0%} to {row['to']:.0%}", f"{row['requests']:,}",
                       f"{row['ttft_ms']['mean']:,.0f} ms", f"{row['ttft_ms']['p99']:,.0f} ms")  # fmt: skip
    screen.print(shares)
    minutes = Table(box=None, pad_edge=False)
    for name in ("minute", "requests", "TTFT p99", "goodput", "over SLO"):
        minutes.add_column(name, justify="right")
    for row in seen["minutes"]:
        minutes.add_row(f"{row['minute']}", f"{row['requests']:,}", f"{row['ttft_ms']['p99']:,.0f} ms",
                        f"{row['goodput_rps']:,.3f}/s", f"{row['missed_share']:.0%}")  # fmt: skip
    screen.print(minutes)
    for note in seen["notes"]:
        screen.print(f"note: {note}", markup=False)
    if seen["verdict"] != "ok":
        screen.print(f"{seen['verdict']}: {seen['why']}", markup=False)
