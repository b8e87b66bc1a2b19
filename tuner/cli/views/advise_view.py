"""How advice looks in a terminal: what runs, what was seen beside what was expected, and what to change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hwprobe.plain_text import one_line
from tuner.advise.expected import Model
from tuner.advise.finding import Finding
from tuner.advise.look import AdviseAnswer, ServerAnswer
from tuner.choices import SIMULATED
from tuner.scrape.observed import Observed


def show_advice(answer: AdviseAnswer, screen: Console) -> None:
    """Print every server, then the findings of all."""
    for server in answer.servers:
        _show_server(server, screen)
    if not answer.findings:
        looked = any(server.model is not None for server in answer.servers)
        text = "Nothing to change was found." if looked else "Nothing could be compared: see above."
        screen.print(text, style="bold")
        return
    several = len(answer.servers) > 1
    for number, finding in enumerate(answer.findings, 1):
        _show_finding(number, finding, screen, several=several)


def _show_server(server: ServerAnswer, screen: Console) -> None:
    facts, launched = server.facts, server.launched
    stamp = f"{SIMULATED}: " if server.simulated else ""
    version = facts.info.get("version") or facts.loads.get("version")
    title = f"{stamp}{facts.name}: {facts.engine or 'unknown engine'} {one_line(str(version or ''), 40)}".rstrip()
    screen.print(title, style="bold", markup=False)
    if launched is not None:
        pool = "as it says" if launched.spoken else "by the ledger"
        screen.print(
            f"{launched.model}, {launched.config.label} on {launched.hardware.name}, {launched.kv_tokens:,.0f} KV "
            f"tokens ({pool})",
            markup=False,
        )
        for assumption in launched.assumed:
            screen.print(f"assumed: {assumption}", markup=False)
    for note in facts.notes:
        screen.print(f"note: {note}", markup=False)
    if server.seen is not None:
        _show_traffic(server.seen, screen)
    if server.model is not None and server.seen is not None:
        _show_latencies(server.model, server.seen, screen)
    elif server.unexpected:
        screen.print(f"no expectation: {server.unexpected}", markup=False)
    for each in server.slos:
        word = {True: "kept", False: "missed", None: "not known"}[each.kept]
        value = "" if each.value_ms is None else f" ({each.value_ms:,.0f} ms)"
        lost = f", {each.lost_minutes:g} min lost" if each.lost_minutes else ""
        screen.print(f"SLO {each.slo}: {word}{value}{lost}", markup=False)
    screen.print()


def _show_traffic(observed: Observed, screen: Console) -> None:
    """Print what came in two lines."""
    since = f"in {observed.seconds:,.0f} s" if observed.seconds and observed.basis == "window" else "since its start"

    def text(value: float | None, form: str, unit: str) -> str:
        return "" if value is None else f"{value:{form}} {unit}"

    parts = (
        text(observed.request_rate, ".2f", "requests/s"), text(observed.isl, ",.0f", "tokens in"),
        text(observed.osl, ",.0f", "out"), text(observed.output_tok_s, ",.0f", "output tok/s"),
        "" if observed.cached_share is None else f"{observed.cached_share:.0%} of prompts cached",
        text(observed.accept_length, ".2f", "tokens a step"),
    )  # fmt: skip
    screen.print(
        f"seen {since}: {observed.requests:,.0f} requests, " + ", ".join(part for part in parts if part), markup=False
    )
    levels = (
        text(observed.running, ",.0f", "running"), text(observed.waiting, ",.0f", "queued"),
        text(observed.in_flight, ",.1f", "in flight on average"),
        "" if observed.kv_usage is None else f"{observed.kv_usage:.0%} of KV used",
        f"{observed.retractions:,.0f} sent back",
    )  # fmt: skip
    screen.print(", ".join(part for part in levels if part), markup=False)


def _show_latencies(model: Model, observed: Observed, screen: Console) -> None:
    base = model.base
    table = Table(title=f"limited by {base.limiting}", title_justify="left")
    for heading in ("", "seen", "expected", "measured over predicted"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = (
        ("TTFT mean, ms", observed.ttft_ms.get("mean"), base.ttft_ms["mean"]),
        ("TPOT mean, ms", observed.tpot_ms.get("mean"), base.tpot_ms["mean"]),
        ("E2E mean, ms", observed.e2e_ms.get("mean"), base.e2e_ms["mean"]),
        ("output tok/s", observed.output_tok_s, base.output_tok_s),
    )
    for name, measured, predicted in rows:
        apart = f"{100.0 * (measured / predicted - 1.0):+.0f} %" if measured and predicted else "-"
        table.add_row(name, "-" if measured is None else f"{measured:,.1f}", f"{predicted:,.1f}", apart)
    screen.print(table)


def _show_finding(number: int, finding: Finding, screen: Console, *, several: bool) -> None:
    where = f" {finding.server}" if several and finding.server else ""
    gains = [f"+{finding.gain_percent:.0f} % as predicted"] if finding.gain_percent >= 0.5 else []
    if finding.ttft_percent is not None and finding.ttft_percent >= 5.0:
        gains.append(f"first token {finding.ttft_percent:.0f} % sooner" + ("" if gains else " as predicted"))
    gain = f": {', '.join(gains)}" if gains else ""
    screen.print(f"{number}. {finding.kind} ({finding.severity}){where}{gain}", style="bold", markup=False)
    screen.print(f"   {finding.evidence}", markup=False)
    screen.print(f"   change: {finding.change}", markup=False)
    if finding.assumed:
        screen.print(f"   assumed: {finding.assumed}", markup=False)
    if finding.after and finding.before:
        screen.print(f"   before: {finding.before}", markup=False)
        screen.print(f"   after:  {finding.after}", markup=False)
