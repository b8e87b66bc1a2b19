"""Asking before a launch file's command is started."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from tuner.choices import EngineName

if TYPE_CHECKING:
    from tuner.launch_files.trust import Start
    from tuner.launch_files.verification import Claim

DISAGREES = 1


def confirm_start(claim: Claim, start: Start, engine: EngineName, *, yes: bool) -> None:
    """Show what will be started and ask; sgtune's own emulated server needs no yes. Raises InputError without one."""
    from hwprobe.errors import InputError
    from tuner.launch_files.trust import trusted_options

    notes = trusted_options(claim)[1] if engine is EngineName.DOCKER else ()
    for note in (*start.notes, *notes):
        typer.echo(f"note: {note}", err=True)
    if engine is EngineName.EMULATED or yes:
        return
    program = "python3 -m sglang.launch_server"
    typer.echo(f"'{claim.file}' starts, {start.shown(engine, program)}", err=True)
    if not sys.stdin.isatty():
        raise InputError("cannot ask for confirmation without a terminal: read the line above, then add --yes")
    if not typer.confirm("start it?", err=True):
        raise typer.Exit(DISAGREES)
