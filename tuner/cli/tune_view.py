"""How a tuning run looks in a terminal while it goes on, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.config import ServerConfig
from models.estimate import Prediction
from tuner.cli.progress import ProgressScreen
from tuner.engines.seam import Measurement
from tuner.loop import Loop
from tuner.record import Manifest, Outcome, TrialRecord, best_of
from tuner.report import baseline_of, nearest_of, spec_of
from tuner.setup import Prepared


class LiveReporter(ProgressScreen):
    """A progress bar on a terminal, one line per trial everywhere."""

    def __init__(self, screen: Console, launches: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(screen, "launches", *columns, total=launches)
        self._launches = launches
        self._done = 0

    def begin(self, loop: Loop, prepared: Prepared) -> None:
        """Say what runs where, and what an earlier session has done already."""
        question = prepared.question
        world = (
            f" (world '{question.world.name}', virtual time: no GPU is used)"
            if question.engine == "simulated"
            else f" (world '{question.world.name}')"
            if question.engine == "emulated"
            else ""
        )
        self._screen.print(f"engine {question.engine}{world}; run folder {loop.folder.path}")
        for warning in prepared.plan.warnings:
            self._screen.print(f"note: {warning}")
        if loop.records:
            self._screen.print(f"resumed: {loop.launches} launches of {self._launches} are done")
            self._done = loop.launches
            self._progress.update(self._bar, completed=self._done)

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None:
        self._progress.update(
            self._bar, description=f"trial {number} ({source}) {config.label}: {predicted.output_tok_s:,.0f} predicted"
        )

    def point(self, number: int, measured: Measurement) -> None:
        self._progress.update(
            self._bar,
            description=f"trial {number}: {measured.output_tok_s:,.0f} tok/s at {measured.concurrency} clients",
        )

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None:
        if not record.launched:
            return
        self._done += 1
        self._progress.update(self._bar, completed=self._done)
        self._screen.print(
            f"[{self._done}/{self._launches}] {_trial_line(record)}{_best_mark(record, best)}", markup=False
        )


def _trial_line(record: TrialRecord) -> str:
    config = record.config
    flags = f"frac {config.mem_fraction_static:.3f}, chunk {config.chunked_prefill_size}"
    head = f"trial {record.number} {record.label} ({record.source}; {flags}): "
    if record.target is None:
        return f"{head}{_why(record)}"
    measured, predicted = record.target.output_tok_s, record.predicted["output_tok_s"]
    text = f"{head}{measured:,.0f} tok/s, predicted {predicted:,.0f} ({100 * (predicted / measured - 1):+.1f} %)"
    return text + ("; " + "; ".join(record.misses) if record.misses else "")


def _why(record: TrialRecord) -> str:
    """The failure in one line; all of the evidence is in the record."""
    said = record.reason.strip().splitlines() or [""]
    return f"{record.failure or record.outcome}: {said[0]}"


def _best_mark(record: TrialRecord, best: TrialRecord | None) -> str:
    return "  <- best so far" if best is not None and best.number == record.number else ""


def show_dry_run(prepared: Prepared, screen: Console) -> None:
    """Print the first launches, the time they cost, and what was ruled out."""
    question = prepared.question
    hours = question.trials * question.world.boot_s / 3600
    screen.print(f"{question.trials} launches, about {hours:.1f} h of boot time on the {question.engine} engine")
    table = Table(title="first launches", title_justify="left")
    for heading in ("", "source", "configuration", "mem frac", "chunk", "graph bs", "max running"):
        table.add_column(heading)
    for index, (source, params) in enumerate(prepared.seeds):
        config = prepared.space.config(params)
        table.add_row(
            str(index), source, config.label, f"{config.mem_fraction_static:.3f}", str(config.chunked_prefill_size),
            str(config.cuda_graph_max_bs_decode), str(config.max_running_requests),
        )  # fmt: skip
    screen.print(table)
    for item in prepared.plan.found.rejected:
        screen.print(f"ruled out: {item.config.label}: {item.reason}", markup=False)


def show_result(loop: Loop, manifest: Manifest, exports: Sequence[Path], screen: Console, *, model_path: str) -> None:
    """Print the ranking, the winner with its interval, the gain over the baseline, and the files."""
    screen.print(_ranking(loop.records))
    infeasible = sum(r.launched and not r.feasible for r in loop.records)
    skipped = sum(r.outcome is Outcome.RULED_OUT for r in loop.records)
    screen.print(
        f"{loop.launches} launches ({infeasible} infeasible), {skipped} proposals ruled out without launching, "
        f"{loop.spent_s / 3600:.1f} h of engine time; stopped: {loop.stop_reason}"
    )
    best = best_of(loop.records)
    if best is None or best.target is None:
        _show_nearest(loop.records, screen)
        return
    target = best.target
    low, high = target.output_tok_s_interval
    predicted = best.predicted["output_tok_s"]
    screen.print(
        f"[bold green]best[/]: [bold]{best.label}[/], {target.output_tok_s:,.0f} output tok/s "
        f"(95 % interval {low:,.0f} to {high:,.0f}), {target.user_tok_s:.1f} per user, "
        f"TTFT {target.ttft_ms['mean']:,.0f} ms; predicted {predicted:,.0f} "
        f"({100 * (predicted / target.output_tok_s - 1):+.1f} %)"
    )
    baseline = baseline_of(loop.records)
    if baseline is not None and baseline.target is not None:
        gain = 100 * (target.output_tok_s / baseline.target.output_tok_s - 1)
        screen.print(
            f"SGLang's defaults ({baseline.label}): {baseline.target.output_tok_s:,.0f} tok/s; gain {gain:+.0f} %"
        )
    screen.print(spec_of(best, manifest, model_path).shell_line(), soft_wrap=True, markup=False)
    for path in exports:
        screen.print(f"wrote {path}", markup=False, soft_wrap=True)


def _show_nearest(records: Sequence[TrialRecord], screen: Console) -> None:
    nearest = nearest_of(records)
    if nearest is None or nearest.target is None:
        screen.print("[bold red]no configuration could be measured[/]")
        return
    screen.print(
        f"[bold red]no configuration meets the limits[/]; nearest: {nearest.label} with "
        f"{nearest.target.output_tok_s:,.0f} tok/s ({'; '.join(nearest.misses)})"
    )


def _ranking(records: Sequence[TrialRecord]) -> Table:
    table = Table(title="measured, best first", title_justify="left")
    for heading in ("trial", "source", "configuration", "mem frac", "chunk", "graph bs", "tok/s", "predicted",
                    "per user", "TPOT ms", "TTFT ms", "note"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("source", "configuration", "note") else "right")
    measured = sorted((r for r in records if r.target), key=lambda r: (not r.feasible, -r.objective))
    for record in [*measured, *(r for r in records if r.launched and not r.target)]:
        config, target = record.config, record.target
        figures = (
            (f"{target.output_tok_s:,.0f}", f"{record.predicted['output_tok_s']:,.0f}", f"{target.user_tok_s:.1f}",
             f"{target.tpot_ms['mean']:.1f}", f"{target.ttft_ms['mean']:,.0f}")
            if target
            else ("-", f"{record.predicted['output_tok_s']:,.0f}", "-", "-", "-")
        )  # fmt: skip
        note = "; ".join(record.misses) if target else _why(record)
        table.add_row(
            str(record.number), record.source, record.label, f"{config.mem_fraction_static:.3f}",
            str(config.chunked_prefill_size), str(config.cuda_graph_max_bs_decode), *figures, note,
        )  # fmt: skip
    return table
