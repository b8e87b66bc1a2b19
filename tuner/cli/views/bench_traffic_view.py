"""How a measurement under a trace looks in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tuner.choices import SIMULATED


def show_bench_traffic(document: dict[str, Any], screen: Console) -> None:
    """Print latencies, hits against those expected, TTFT by cached share, and the minutes."""
    result = document["traffic"]
    if document["simulated"]:
        screen.print(SIMULATED, markup=False)
    screen.print(
        f"{result['requests']:,} requests of {result['file']} in {result['duration_s']:,.1f} s, "
        f"{result['errors']} errors; sent {result['lateness_ms']['p99']:,.1f} ms late at p99\n"
        f"TTFT {result['ttft_ms']['mean']:,.0f} ms mean, {result['ttft_ms']['p99']:,.0f} ms p99; TPOT "
        f"{result['tpot_ms']['mean']:,.2f} ms; {result['output_tok_s']:,.1f} output tok/s; goodput "
        f"{result['goodput_rps']:,.3f} requests/s\n"
        f"cached: {result['cached_tokens']:,} prompt tokens ({result['hit_rate']:.1%}); expected "
        f"{result['expected_cached_tokens']:,} to {result['expected_at_most_tokens']:,}; as expected in "
        f"{result['hits_as_expected']:,} requests",
        markup=False,
    )
    shares = Table(box=None, pad_edge=False)
    for name in ("cached share", "requests", "TTFT mean", "TTFT p99"):
        shares.add_column(name, justify="right")
    for row in result["ttft_by_cached_share"]:
        shares.add_row(f"{row['from']:.0%} to {row['to']:.0%}", f"{row['requests']:,}",
                       f"{row['ttft_ms']['mean']:,.0f} ms", f"{row['ttft_ms']['p99']:,.0f} ms")  # fmt: skip
    screen.print(shares)
    minutes = Table(box=None, pad_edge=False)
    for name in ("minute", "requests", "TTFT p99", "goodput", "over SLO"):
        minutes.add_column(name, justify="right")
    for row in result["minutes"]:
        minutes.add_row(f"{row['minute']}", f"{row['requests']:,}", f"{row['ttft_ms']['p99']:,.0f} ms",
                        f"{row['goodput_rps']:,.3f}/s", f"{row['missed_share']:.0%}")  # fmt: skip
    screen.print(minutes)
    for note in result["notes"]:
        screen.print(f"note: {note}", markup=False)
    if result["verdict"] != "ok":
        screen.print(f"{result['verdict']}: {result['why']}", markup=False)
