"""How a tuning run looks in a terminal while it goes on, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.config import ServerConfig
from models.estimate import Prediction
from planner.export.targets import Parameters
from tuner.candidates import candidates_of
from tuner.choices import Fidelity
from tuner.cli.progress import ProgressScreen
from tuner.confirm import BASELINE, standings, winner_of
from tuner.engines.seam import Measurement
from tuner.export import spec_of
from tuner.learned import knob_effects, residuals
from tuner.loop import Loop
from tuner.record import Manifest, Outcome, TrialRecord
from tuner.report import nearest_of
from tuner.setup import Prepared
from tuner.slice_trials import slices_line

MOST_SENTENCES = 5


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

    def slice(self, said: str) -> None:
        """Say what a slice showed."""
        self._screen.print(said, markup=False)

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None:
        if not record.launched:
            return
        if record.repeats is not None:
            self._screen.print(f"[again] {_trial_line(record)}", markup=False)
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
    again = question.confirm + 1 if question.confirm else 0
    hours = (question.trials + again) * question.world.boot_s / 3600
    screen.print(
        f"{question.trials} launches and at most {again} to confirm, out of "
        f"{len(candidates_of(prepared.space).configs):,} configurations that rules and memory allow"
    )
    screen.print(f"about {hours:.1f} h of boot time on the {question.engine} engine")
    if question.fidelity is Fidelity.SLICE:
        screen.print(slices_line(question.plan.arch, question.trials, question.world))
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
    infeasible = sum(r.launched and not r.feasible and r.repeats is None for r in loop.records)
    skipped = sum(r.outcome is Outcome.RULED_OUT for r in loop.records)
    screen.print(
        f"{loop.launches} launches ({infeasible} infeasible), {skipped} proposals ruled out without launching, "
        f"{loop.spent_s / 3600:.1f} h of engine time; stopped: {loop.stop_reason}"
    )
    winner = winner_of(loop.records)
    if winner is None or winner.first.target is None:
        _show_nearest(loop.records, screen)
        return
    best, target = winner.first, winner.first.target
    low, high = winner.interval
    predicted = best.predicted["output_tok_s"]
    screen.print(
        f"[bold green]best[/]: [bold]{best.label}[/] (trial {best.number}), {winner.output_tok_s:,.0f} output tok/s "
        f"(95 % interval {low:,.0f} to {high:,.0f}, {_launches(len(winner.launches))}), "
        f"{target.user_tok_s:.1f} per user, TTFT {target.ttft_ms['mean']:,.0f} ms; predicted {predicted:,.0f} "
        f"({100 * (predicted / winner.output_tok_s - 1):+.1f} %)"
    )
    baseline = next((s for s in standings(loop.records) if s.first.source == BASELINE), None)
    if baseline is not None:
        gain = 100 * (winner.output_tok_s / baseline.output_tok_s - 1)
        drift = "" if baseline.drift is None else f"; its second launch {100 * baseline.drift:+.1f} %"
        screen.print(
            f"SGLang's defaults ({baseline.first.label}): {baseline.output_tok_s:,.0f} tok/s; gain {gain:+.0f} %{drift}"
        )
    _show_learned(loop.records, screen)
    screen.print(spec_of(best, manifest, Parameters(model_path=model_path)).shell_line(), soft_wrap=True, markup=False)
    for path in exports:
        screen.print(f"wrote {path}", markup=False, soft_wrap=True)


def _launches(count: int) -> str:
    return "one launch" if count == 1 else f"{count} launches"


def _show_learned(records: Sequence[TrialRecord], screen: Console) -> None:
    """Say what single knobs did, and where the prediction was off."""
    for effect in knob_effects(records)[:MOST_SENTENCES]:
        screen.print(f"learned: {effect.sentence}", markup=False)
    off = [f"{r.family} {100 * r.mean:+.1f} %" for r in residuals(records)[:MOST_SENTENCES]]
    if off:
        screen.print(f"measured over predicted: {', '.join(off)}", markup=False)


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
    first = [r for r in records if r.repeats is None]
    again = {r.repeats: r.target.output_tok_s for r in records if r.repeats is not None and r.target}
    measured = sorted((r for r in first if r.target), key=lambda r: (not r.feasible, -r.objective))
    for record in [*measured, *(r for r in first if r.launched and not r.target)]:
        config, target = record.config, record.target
        figures = (
            (f"{target.output_tok_s:,.0f}", f"{record.predicted['output_tok_s']:,.0f}", f"{target.user_tok_s:.1f}",
             f"{target.tpot_ms['mean']:.1f}", f"{target.ttft_ms['mean']:,.0f}")
            if target
            else ("-", f"{record.predicted['output_tok_s']:,.0f}", "-", "-", "-")
        )  # fmt: skip
        note = "; ".join(record.misses) if target else _why(record)
        if record.number in again:
            note = "; ".join(filter(None, (note, f"again: {again[record.number]:,.0f}")))
        table.add_row(
            str(record.number), record.source, record.label, f"{config.mem_fraction_static:.3f}",
            str(config.chunked_prefill_size), str(config.cuda_graph_max_bs_decode), *figures, note,
        )  # fmt: skip
    return table
