"""Entry point: commands, exit codes, and errors as one clear sentence."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hwprobe.errors import SgtuneError
from hwprobe.plain_text import clean, one_line
from tuner import __version__
from tuner.cli import known_models
from tuner.cli.commands import (
    advise,
    bench,
    calibrate,
    check,
    dashboard,
    doctor,
    explain,
    export,
    plan,
    predict,
    probe,
    runs,
    traffic,
    tune,
    validate,
    verify,
)

INTERRUPTED = 130
PACKAGES = ("hwprobe", "models", "planner", "tuner", "dashboard")

app = typer.Typer(
    name="sgtune",
    help="Serve DeepSeek-R1 on SGLang as well as the machine can: does it fit, how fast, with which flags.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"sgtune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["SGTUNE_DEBUG"] = "1"


app.command(name="probe", epilog=probe.EXAMPLE)(probe.probe)
app.command(name="hardware", epilog=probe.HARDWARE_EXAMPLE)(probe.hardware)
app.command(
    name="check", epilog=check.EXAMPLE, context_settings={"ignore_unknown_options": True, "allow_extra_args": False}
)(check.check)
app.command(name="advise", epilog=advise.EXAMPLE)(advise.advise)
app.command(name="plan", epilog=plan.EXAMPLE)(plan.plan)
app.command(name="models", epilog=known_models.EXAMPLE)(known_models.models)
app.command(name="predict", epilog=predict.EXAMPLE)(predict.predict)
app.command(name="calibrate", epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.command(name="explain", epilog=explain.EXAMPLE)(explain.explain)
app.command(name="validate", epilog=validate.EXAMPLE)(validate.validate)
app.command(name="traffic", epilog=traffic.EXAMPLE)(traffic.traffic)
app.command(name="tune", epilog=tune.EXAMPLE)(tune.tune)
app.command(name="bench", epilog=bench.EXAMPLE)(bench.bench)
app.command(name="export", epilog=export.EXAMPLE)(export.export)
app.command(name="verify", epilog=verify.EXAMPLE)(verify.verify)
app.add_typer(runs.app, name="runs")
app.command(name="doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.command(name="cluster", epilog=doctor.CLUSTER_EXAMPLE)(doctor.cluster)
app.command(name="dashboard", epilog=dashboard.EXAMPLE)(dashboard.dashboard)


def main() -> None:
    """Run the command line; every error is a sentence and an exit code, a traceback only with --debug."""
    _check_one_parent()
    try:
        try:
            app(prog_name="sgtune")
        finally:
            sys.stdout.flush()
    except SgtuneError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone.
        _drop_output()
        sys.exit(0)
    except (OSError, MemoryError) as error:  # a full or vanished disk, a terminal that is gone, no memory
        _drop_output()
        where = f" '{error.filename}'" if isinstance(error, OSError) and error.filename else ""
        _end(f"{getattr(error, 'strerror', None) or 'out of memory'}{where}; see to it and try again", 1)
    except Exception as error:  # noqa: BLE001  the one place where a defect becomes a sentence
        _end(f"sgtune failed unexpectedly: {one_line(repr(error), 500)}; run it with --debug and report this", 1)


def _end(message: str, code: int) -> NoReturn:
    """Print the error and exit; with --debug raise it."""
    if os.environ.get("SGTUNE_DEBUG"):
        raise
    with suppress(OSError):
        typer.echo(f"error: {clean(message)}", err=True)
    sys.exit(code)


def _drop_output() -> None:
    """Keep buffered output from failing once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_one_parent() -> None:
    """The packages have plain names; another `models` earlier on the path would shadow ours."""
    places = {}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            places[package] = Path(spec.origin).resolve().parent.parent
    home = places.get("tuner")
    strangers = {package: place for package, place in places.items() if place != home}
    if strangers:
        named = ", ".join(f"'{package}' from {place}" for package, place in strangers.items())
        typer.echo(
            f"error: {named} shadows sgtune's own package (in {home}); install sgtune into an environment of "
            "its own or leave that folder off PYTHONPATH",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
