"""How a measurement looks in a terminal while it goes on, and at its end."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tuner.bench.each_server import ServerShare, ServerState
from tuner.bench.point import LivePoint, MeasuredPoint
from tuner.bench.sweep import BenchAnswer
from tuner.choices import SIMULATED
from tuner.cli.views.progress import ProgressScreen
from tuner.seam import Verdict


class BenchScreen(ProgressScreen):
    """A progress bar on a terminal, a line per point everywhere."""

    def __init__(self, screen: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(screen, "connecting", *columns, total=None)

    def live(self, live: LivePoint) -> None:
        self._progress.update(
            self._bar,
            description=f"{live.concurrency} clients, {live.phase}: {live.in_flight} running, {live.tok_s:,.0f} tok/s",
            total=live.wanted or None,
            completed=min(live.done, live.wanted) if live.wanted else live.done,
        )

    def point(self, point: MeasuredPoint) -> None:
        window = point.window
        load = f"{point.settings.request_rate:g} requests/s" if point.settings.request_rate else (
            f"{point.workload.concurrency} clients"
        )  # fmt: skip
        remark = "" if point.verdict is Verdict.OK else f"  [{point.verdict}: {point.why}]"
        self._screen.print(
            f"{load}: {window.output_tok_s:,.1f} output tok/s, TTFT {window.ttft.by['mean']:,.0f} ms, "
            f"TPOT {window.tpot.by['mean']:,.2f} ms, {window.requests} requests in {window.seconds:.1f} s{remark}",
            markup=False,
        )

    def server(self, share: ServerShare) -> None:
        figures = (
            f"{share.requests} requests, {share.output_tok_s:,.1f} output tok/s, "
            f"TTFT {_ms(share.ttft_ms)}, TPOT {_ms(share.tpot_ms)}"
        )
        marked = "" if share.state is ServerState.OK else f"  <- {share.state}: {share.why}"
        self._screen.print(f"  {share.url}: {figures}{marked}", markup=False)


def _ms(value: float | None) -> str:
    return "not said" if value is None else f"{value:,.1f} ms"


def show_bench(answer: BenchAnswer, screen: Console) -> None:
    """Print the table of the points, the knee, and the other benchmark's figures beside ours."""
    screen.print(_table(answer))
    knee = answer.knee
    if knee is not None:
        text = f"{knee.best} clients keep every SLO" if knee.best else "not one client keeps every SLO"
        broken = f"; {knee.broken} do not: {'; '.join(knee.misses)}" if knee.broken else "; the limit was not found"
        screen.print(text + broken, markup=False)
    if answer.theirs:
        screen.print(_beside(answer))
    for point in answer.points:
        if point.verdict is not Verdict.OK:
            screen.print(
                f"not for decisions, {point.workload.concurrency} clients: {point.verdict}: {point.why}", markup=False
            )
    if answer.degraded:
        screen.print("degraded: a server was gone; the figures are not those of the whole fleet")
    for path in answer.written:
        screen.print(f"wrote {path}", markup=False)


def _table(answer: BenchAnswer) -> Table:
    stamp = f"{SIMULATED}: " if answer.facts.simulated else ""
    table = Table(title=f"{stamp}steady-state windows; latencies in ms", title_justify="left")
    for heading in ("load", "in flight", "output tok/s", "95 % interval", "per user", "TTFT mean", "p99", "TPOT mean",
                    "p99", "E2E mean", "goodput/s", "server run/queue", "CPU s/1k tok", "verdict"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "verdict" else "right")
    for point in answer.points:
        window, server = point.window, point.server
        load = f"{point.settings.request_rate:g}/s" if point.settings.request_rate else str(point.workload.concurrency)
        low, high = window.output_tok_s_interval
        running = "-" if server.running is None else f"{server.running:.0f}/{server.waiting or 0:.0f}"
        table.add_row(
            load, f"{window.in_flight:.1f}", f"{window.output_tok_s:,.1f}", f"{low:,.1f} to {high:,.1f}",
            f"{point.measurement().user_tok_s:.1f}", f"{window.ttft.by['mean']:,.1f}", f"{window.ttft.by['p99']:,.1f}",
            f"{window.tpot.by['mean']:,.2f}", f"{window.tpot.by['p99']:,.2f}", f"{window.e2e.by['mean']:,.0f}",
            f"{window.goodput_rps:.2f}", running, f"{window.generator.cpu_s_per_1000_tokens:.3f}", str(point.verdict),
        )  # fmt: skip
    return table


def _beside(answer: BenchAnswer) -> Table:
    table = Table(title="the same load through sglang.benchmark.serving", title_justify="left")
    for heading in (
        "clients",
        "their tok/s",
        "ours",
        "difference",
        "their TPOT ms",
        "ours",
        "their requests",
        "seconds",
    ):
        table.add_column(heading, justify="right")
    for point, their in zip(answer.points, answer.theirs, strict=True):
        ours = point.window.output_tok_s
        table.add_row(
            str(point.workload.concurrency), f"{their.output_tok_s:,.1f}", f"{ours:,.1f}",
            f"{100 * (ours / their.output_tok_s - 1):+.1f} %", f"{their.tpot_mean_ms:,.2f}",
            f"{point.window.tpot.by['mean']:,.2f}", str(their.completed), f"{their.duration_s:.1f}",
        )  # fmt: skip
    return table
