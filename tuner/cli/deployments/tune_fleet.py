"""`sgtune tune --servers ...`: whole deployments launched, measured, and the best of them written down."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import typer

from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from tuner.fleet_run.loop import FleetLoop
    from tuner.run.question import TuneQuestion


def tune_fleet(question: TuneQuestion, command: str, *, dry_run: bool, json: bool) -> None:
    """Run a tune over deployments and show its result. Exit 3 where none keeps the limits."""
    from hwprobe.files import encode_json
    from tuner.cli.views.fleet_view import FleetProgress, show_fleet_dry_run, show_fleet_result
    from tuner.evidence.standings import winner_of
    from tuner.fleet_run.dry_run import fleet_dry_run
    from tuner.fleet_run.preflight import fleet_preflight
    from tuner.fleet_run.result import fleet_document
    from tuner.fleet_run.setup import checked, open_fleet_loop

    screen = console(stderr=True)
    if dry_run:
        document = fleet_dry_run(question)
        if json:
            print_json(document)
        else:
            show_fleet_dry_run(document, console())
        return
    checked(question)
    fleet_preflight(question)
    reporter = FleetProgress(screen)
    loop = open_fleet_loop(question, reporter)
    try:
        reporter.begin(loop)
        _run(loop, command)
        exports = _exports(loop, command)
        document = fleet_document(loop, exports)
        loop.folder.write("result.json", encode_json(document) + "\n")
        if json:
            print_json(document)
        else:
            show_fleet_result(loop, exports, console())
        if winner_of(loop.in_play) is None:
            raise typer.Exit(3)
    finally:
        loop.close()


def _exports(loop: FleetLoop, command: str) -> list[Path]:
    """Write the winner's scripts into the run folder; return their paths."""
    from planner.launch_files.parameters import Parameters
    from planner.launch_files.targets import Target
    from tuner.evidence.standings import winner_of
    from tuner.launch_files.trial_export import ExportedTrial, trial_export

    best = winner_of(loop.in_play)
    if best is None:
        return []
    trial = ExportedTrial(record=best.first, records=loop.records, manifest=loop.question.manifest())
    exportable = trial_export(trial, Parameters(model_path=loop.plan.served_path), command)
    return exportable.write(loop.folder.export_folder, [Target.BASH])


def _run(loop: FleetLoop, command: str) -> None:
    """Run the loop; an interrupt (Ctrl-C, or SIGTERM of a batch system) leaves a run that --resume continues."""
    from tuner.evidence.live_state import resumed

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        loop.run()
    except KeyboardInterrupt:
        again = resumed(command, loop.folder.path)
        typer.echo(f"interrupted after {len(loop.records)} launches; continue with --resume:\n{again}", err=True)
        raise typer.Exit(130) from None
