"""How a tuning run looks in a terminal while it goes on, and at its end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.config import ServerConfig
from models.serving.estimate import Prediction
from tuner.choices import SIMULATED, SIMULATED_ENGINES, EngineName
from tuner.cli.views.progress import ProgressScreen
from tuner.cli.views.tune_result import figure, why
from tuner.evidence.trial import TrialRecord
from tuner.run.loop import Loop
from tuner.run.setup import Prepared
from tuner.seam import Measurement


class LiveReporter(ProgressScreen):
    """A progress bar on a terminal, one line per trial everywhere."""

    def __init__(self, screen: Console, launches: int) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(screen, "launches", *columns, total=launches)
        self._launches = launches
        self._done = 0
        self._extra = 0
        self._spent_s: list[float] = []

    def begin(self, loop: Loop, prepared: Prepared) -> None:
        """Say what runs where, and what an earlier session has done already."""
        question = prepared.question
        world = ""
        if question.engine in SIMULATED_ENGINES:
            how = ", virtual time: no GPU is used" if question.engine is EngineName.SIMULATED else ""
            world = f" ({SIMULATED}: world '{question.world.name}'{how})"
        self._screen.print(f"engine {question.engine}{world}; run folder {loop.folder.path}", markup=False)
        self._extra = question.confirm + 1 if question.confirm else 0
        for sentence in question.traffic.window.sentences if question.traffic else ():
            self._screen.print(sentence, markup=False)
        for warning in prepared.plan.warnings:
            self._screen.print(f"note: {warning}", markup=False)
        if loop.records:
            self._screen.print(f"resumed: {loop.launches} launches of {self._launches} are done")
            self._done = loop.launches
            self._spent_s = [record.spent_s for record in loop.records if record.launched]
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

    def slice(self, message: str) -> None:
        """Say what a slice showed."""
        self._screen.print(message, markup=False)

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None:
        if not record.launched:
            return
        self._spent_s.append(record.spent_s)
        if record.repeats is not None:
            self._screen.print(f"[confirm: trial {record.repeats}, 2nd launch] {_trial_line(record)}", markup=False)
            return
        self._done += 1
        self._progress.update(self._bar, completed=self._done)
        self._screen.print(
            f"[{self._done}/{self._launches}] {_trial_line(record)}{_best_mark(record, best)}{self._left()}",
            markup=False,
        )

    def _left(self) -> str:
        """Say how long the rest takes at most, by what launches took so far."""
        to_go = self._launches - self._done + self._extra
        each_s = sum(self._spent_s) / len(self._spent_s)
        return f" ({duration(each_s)} a launch, {duration(to_go * each_s)} left at most)" if to_go else ""


def duration(seconds: float) -> str:
    """Return a time span in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _trial_line(record: TrialRecord) -> str:
    config = record.config
    flags = f"frac {config.mem_fraction_static:.3f}, chunk {config.chunked_prefill_size}"
    if record.unpriced:
        flags += f", {record.unpriced}"
    head = f"trial {record.number} {record.label} ({record.source}; {flags}): "
    if record.target is None:
        return f"{head}{why(record)}"
    measured, predicted = record.target.output_tok_s, record.predicted["output_tok_s"]
    text = f"{head}{measured:,.0f} tok/s, predicted {predicted:,.0f} ({100 * (measured / predicted - 1):+.1f} %)"
    if record.decided_at is not None and record.value is not None and abs(record.value / measured - 1) > 1e-9:
        text += f"; objective {figure(record.value)}"
    return text + "".join(f"; {remark}" for remark in (*record.misses, record.reason) if remark)


def _best_mark(record: TrialRecord, best: TrialRecord | None) -> str:
    return "  <- best so far" if best is not None and best.number == record.number else ""


def show_dry_run(document: dict[str, Any], screen: Console) -> None:
    """Print the first launches, the time they cost, what may vary, and what was ruled out."""
    for sentence in document["traffic"]["why"] if "traffic" in document else ():
        screen.print(sentence, markup=False)
    screen.print(
        f"{document['launches']} launches and at most {document['confirmations']} to confirm, out of "
        f"{document['candidates']:,} configurations that rules and memory allow"
    )
    screen.print(
        f"about {document['hours']:.1f} h at most: {duration(document['seconds_per_launch'])} a launch, boot and loads"
    )
    if slices := document["slices"]:
        screen.print(
            f"slices first: up to {slices['most']} configurations are tried on {slices['layers']} of "
            f"{slices['of_layers']} layers, {slices['boot_hours']:.1f} h of boots in all; to launch them in full would "
            f"take {slices['boot_hours_saved']:.1f} h more"
        )
    table = Table(title="first launches", title_justify="left")
    for heading in (
        "",
        "source",
        "configuration",
        "mem frac",
        "chunk",
        "graph bs",
        "max running",
        "predicted",
        "loads",
    ):
        table.add_column(heading)
    for index, item in enumerate(document["first"]):
        config = item["config"]
        table.add_row(
            str(index), item["source"], item["label"], f"{config['mem_fraction_static']:.3f}",
            str(config["chunked_prefill_size"]), str(config["cuda_graph_max_bs_decode"]),
            str(config["max_running_requests"]), f"{item['predicted_output_tok_s']:,.0f}",
            ", ".join(f"{load:g}" for load in item["loads"]),
        )  # fmt: skip
    screen.print(table)
    moves = ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in document["moves"].items())
    screen.print(f"tried from good configurations, priced by no equation: {moves or 'nothing'}", markup=False)
    counts = ", ".join(f"{count} by {kind}" for kind, count in document["ruled_out_by_reason"].items())
    screen.print(f"ruled out before any launch: {counts or 'nothing'}", markup=False)
    for item in document["ruled_out"]:
        screen.print(f"ruled out: {item['label']}: {item['reason']}", markup=False)
