"""How a run over deployments looks in a terminal: a line a launch, and the answer at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planner.fleets.deployment import Deployment, Role
from tuner.choices import SIMULATED, SIMULATED_ENGINES, EngineName
from tuner.cli.views.tune_result import figure, why
from tuner.evidence.standings import decide, named
from tuner.evidence.trial import TrialRecord
from tuner.fleet_run.loop import FleetLoop
from tuner.fleet_run.proposals import COPIES, Foreseen
from tuner.fleet_run.rate_matching import RoleRate
from tuner.fleet_run.result import rates_of
from tuner.run.result import nearest_of
from tuner.seam import LaunchFailed, ServerFigures


class FleetProgress:
    """A line for every launch, and for every role measured alone."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen

    def begin(self, loop: FleetLoop) -> None:
        """Say what runs where, and what an earlier session has done already."""
        question = loop.question
        world = ""
        if question.engine in SIMULATED_ENGINES:
            how = ", virtual time: no GPU is used" if question.engine is EngineName.SIMULATED else ""
            world = f" ({SIMULATED}: world '{question.world.name}'{how})"
        self._say(f"engine {question.engine}{world}; run folder {loop.folder.path}")
        if loop.records:
            self._say(f"resumed: {len(loop.records)} launches are done")

    def launching(self, number: int, source: str, foreseen: Foreseen) -> None:
        predicted = foreseen.candidate.output_tok_s
        self._say(f"launch {number} ({source}): {foreseen.deployment.name}, {predicted:,.0f} tok/s predicted")

    def alone(self, rate: RoleRate) -> None:
        self._say(rate_sentence(rate))

    def not_alone(self, role: Role, failure: LaunchFailed) -> None:
        first = (failure.evidence.splitlines() or [""])[0]
        self._say(f"{role} alone: not measured, its figures stay as predicted ({failure.kind}: {first})")

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None:
        if record.target is None:
            self._say(f"launch {record.number}: {why(record)}")
            return
        mark = "  <- best so far" if best is not None and best.number == record.number else ""
        off = 100 * (record.over_predicted - 1)
        misses = "".join(f"; {miss}" for miss in record.misses)
        self._say(
            f"launch {record.number}: {record.target.output_tok_s:,.0f} tok/s, {off:+.1f} % of predicted, TTFT "
            f"{record.target.ttft_ms['mean']:,.0f} ms, TPOT {record.target.tpot_ms['mean']:.1f} ms{misses}{mark}"
        )
        for server in record.target.servers or ():
            if server.slow:
                self._say(f"  {server.name} is slow: {server.slow}")

    def _say(self, text: str) -> None:
        self._screen.print(text, markup=False, soft_wrap=True)


def rate_sentence(rate: RoleRate) -> str:
    """Say what a server of a role does alone."""
    unit = "prompts/s" if rate.role is Role.PREFILL else "ms per token"
    return (
        f"{rate.role} alone, {rate.label}, {rate.clients} requests: {rate.measured:.3g} {unit}, {rate.predicted:.3g} "
        f"predicted ({rate.over_predicted:.2f} times as fast)"
    )


def show_fleet_result(loop: FleetLoop, exports: Sequence[Path], screen: Console) -> None:
    """Print the launches best first, the winner with its gain over copies, and what every server of it did."""
    manifest = loop.question.manifest()
    stamp = f"{SIMULATED} " if manifest.simulated else ""
    screen.print(_ranking(loop.records, stamp))
    for rate in rates_of(loop):
        screen.print(rate_sentence(rate), markup=False)
    whole = sum(record.repeats is None for record in loop.records)
    screen.print(
        f"{whole} deployments launched whole, {len(loop.records) - whole} once more, {len(loop.measured_alone)} roles "
        f"alone, {loop.spent_s / 3600:.1f} h of engine time; stopped: {loop.stop_reason}"
    )
    decided = decide(loop.in_play)
    if decided is None:
        _show_nearest(loop, screen)
        return
    winner = decided.winner
    low, high = winner.value_interval
    screen.print(
        f"[bold green]{stamp}best[/]: [bold]{escape(winner.first.label)}[/] (launch {winner.first.number}), "
        f"{figure(winner.value)} output tok/s (95 % interval {figure(low)} to {figure(high)}), "
        f"{winner.user_tok_s:.1f} per user"
    )
    for tied in decided.tied:
        screen.print(f"tied within noise: {tied.first.label}, {figure(tied.value)} tok/s", markup=False)
    baseline = named(loop.records, COPIES)
    if baseline is not None and baseline.first.number != winner.first.number:
        gain = 100 * winner.gain_over(baseline)
        screen.print(
            f"{baseline.first.label}, the best copies: {figure(baseline.value)} tok/s; gain {gain:+.0f} %", markup=False
        )
    target = winner.first.target
    if target is not None and target.servers:
        screen.print(_servers(target.servers, stamp))
    for path in exports:
        screen.print(f"wrote {path}", markup=False, soft_wrap=True)
    run = loop.folder.path
    screen.print(
        f"all files: sgtune export --runs {run.parent} --run {run.name} --bundle DIR", markup=False, soft_wrap=True
    )


def _show_nearest(loop: FleetLoop, screen: Console) -> None:
    nearest = nearest_of(loop.in_play)
    if nearest is None or nearest.target is None:
        screen.print("[bold red]no deployment could be measured[/]")
        return
    screen.print(
        f"[bold red]no deployment meets the limits[/]; nearest: {escape(nearest.label)} with "
        f"{nearest.target.output_tok_s:,.0f} tok/s ({escape('; '.join(nearest.misses))})"
    )


def _ranking(records: Sequence[TrialRecord], stamp: str) -> Table:
    table = Table(title=f"{stamp}deployments, best first", title_justify="left")
    for heading in ("launch", "source", "deployment", "tok/s", "predicted", "TPOT ms", "TTFT ms", "note"):
        table.add_column(heading, justify="left" if heading in ("source", "deployment", "note") else "right")
    for record in sorted(records, key=lambda r: (r.target is None, not r.feasible, -r.objective)):
        target = record.target
        measured = ("-", "-", "-") if target is None else (
            f"{target.output_tok_s:,.0f}", f"{target.tpot_ms['mean']:.1f}", f"{target.ttft_ms['mean']:,.0f}"
        )  # fmt: skip
        note = why(record) if target is None else "; ".join(filter(None, (_knobs(record), *record.misses)))
        table.add_row(
            str(record.number), record.source, escape(record.label), measured[0],
            f"{record.predicted['output_tok_s']:,.0f}", *measured[1:], escape(note),
        )  # fmt: skip
    return table


def _knobs(record: TrialRecord) -> str:
    """Return what a deployment's name does not say: the prefill chunk and how many requests its servers run."""
    if not isinstance(record.deployment, Deployment):
        return ""
    first, last = record.deployment.pools[0].config, record.deployment.pools[-1].config
    return f"chunk {first.chunked_prefill_size}, {last.max_running_requests} running"


def _servers(servers: Sequence[ServerFigures], stamp: str) -> Table:
    table = Table(title=f"{stamp}its servers", title_justify="left")
    for heading in ("server", "requests", "tok/s", "TPOT ms", "KV in use", "queued", "transfer ms", "GB/s"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for one in servers:
        share = "" if one.kv_share is None else f"{one.kv_share:.0%}"
        table.add_row(
            one.name, str(one.requests), f"{one.output_tok_s:,.0f}", _said(one.tpot_ms), share, _said(one.queued),
            _said(one.transfer_ms), _said(one.transfer_gb_s),
        )  # fmt: skip
    return table


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def show_fleet_dry_run(document: dict[str, Any], screen: Console) -> None:
    """Print what would be launched, best predicted first."""
    screen.print(
        f"at most {document['launches']} launches of whole deployments, out of {document['candidates']} that the "
        "closed forms put ahead; they are chosen one by one, by what the earlier ones showed"
    )
    if document["alone"]:
        screen.print(f"first alone, one server each: {' and '.join(document['alone'])}", markup=False)
    table = Table(title="best predicted", title_justify="left")
    for heading in ("source", "deployment", "tok/s", "TPOT ms", "TTFT ms", "limited by", "misses"):
        table.add_column(heading, justify="right" if heading in ("tok/s", "TPOT ms", "TTFT ms") else "left")
    for item in document["first"]:
        predicted = item["predicted"]
        table.add_row(
            item["source"], escape(item["label"]), f"{predicted['output_tok_s']:,.0f}",
            f"{predicted['tpot_mean_ms']:.1f}", f"{predicted['ttft_mean_ms']:,.0f}", item["limited_by"],
            escape("; ".join(item["misses"])),
        )  # fmt: skip
    screen.print(table)
