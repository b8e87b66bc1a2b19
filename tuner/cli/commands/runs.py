"""`sgtune runs`: look after run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import print_json

EXAMPLE = "Example: sgtune runs repair nf5688g7-1000-1000-c1024"

app = typer.Typer(help="Look after run folders: repair evidence that a disk or a person has spoiled.")


@app.command(epilog=EXAMPLE)
def repair(
    run: Annotated[str, typer.Argument(help="Name of the run folder.", show_default=False)],
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Keep the sound records of a run, list the others, and set the old file aside."""
    from tuner.evidence.repair import repair as repaired

    outcome = repaired(runs / run)
    if json:
        print_json(
            {
                "kept": len(outcome.kept),
                "recovered": outcome.recovered,
                "left_out": outcome.left_out,
                "aside": None if outcome.aside is None else str(outcome.aside),
            }
        )
        return
    if outcome.aside is None:
        typer.echo(f"the evidence of '{run}' is sound: {len(outcome.kept)} records")
        return
    typer.echo(
        f"kept {len(outcome.kept)} records"
        + (f", {len(outcome.recovered)} of them from the trials' own folders" if outcome.recovered else "")
    )
    for loss in outcome.left_out:
        typer.echo(f"left out: {loss}")
    typer.echo(f"the file as it was: {outcome.aside}; continue with sgtune tune ... --resume")
