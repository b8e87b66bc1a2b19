"""`sgtune dashboard`: plans and runs in a browser, served from this machine to this machine."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tuner.cli.common import options

EXAMPLE = "Example: sgtune dashboard --runs runs"
HOST = "127.0.0.1"
# What is chosen is blue: red is for errors.
PRIMARY = "#0072B2"
FIRST_PORT, PORTS_TRIED = 8501, 50
NEEDED = ("streamlit", "plotly", "pandas")


def dashboard(
    runs: options.Runs = Path("runs"),
    port: Annotated[
        int | None, typer.Option("--port", help=f"Port on {HOST}; default: the first free one from {FIRST_PORT}.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    url: Annotated[
        list[str] | None, typer.Option("--url", help="A running server for the page Servers, repeatable.")
    ] = None,
) -> None:
    """Look at plans and runs in a browser. It only reads run folders, and nothing leaves this machine."""
    from hwprobe.errors import InputError

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"the dashboard needs {', '.join(missing)}: in the checkout, pip install -e '.[dashboard]'")
    if runs.exists() and not runs.is_dir():
        raise InputError(f"--runs is '{runs}'; it must be a folder of run folders")
    if url:
        from tuner.bench.server_side import Address

        for each in url:
            Address.parse(each)
        os.environ["SGTUNE_ADVISE_URLS"] = " ".join(url)
    free_port = _free_port(port)
    typer.echo(f"dashboard of '{runs}' on http://{HOST}:{free_port} (Ctrl-C ends it)", err=True)
    _serve(command(free_port, browser=browser), runs)


def command(port: int, *, browser: bool) -> list[str]:
    """Return the command that serves the pages: this machine only, no usage statistics, no file watching."""
    settings = {
        "server.address": HOST,
        "server.port": port,
        "server.headless": str(not browser).lower(),
        "server.showEmailPrompt": "false",
        "theme.light.primaryColor": PRIMARY,
        "theme.dark.primaryColor": PRIMARY,
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        "logger.level": "warning",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "dashboard", *words]


def _serve(words: list[str], runs: Path) -> NoReturn:
    """Become the server: with no process in between, whoever ends the command ends it, too."""
    from hwprobe.holds import remove_abandoned

    remove_abandoned()  # what pages of a killed one were packing
    sys.stderr.flush()
    # by no other name, so that no page from elsewhere reads this one; in the environment, as older releases lack it
    hosts = {"STREAMLIT_SERVER_ALLOWED_HOSTS": f"{HOST} localhost"}
    os.execve(words[0], words, os.environ | hosts | {"PYTHONSAFEPATH": "1", "SGTUNE_RUNS": str(runs.absolute())})


def _free_port(named_port: int | None) -> int:
    """Return the port asked for, or the first free one. Raises InputError when it cannot be had."""
    from hwprobe.errors import InputError

    if named_port is not None and not 1 <= named_port <= 65535:
        raise InputError(f"--port is {named_port}; it must be between 1 and 65535")
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if named_port is None else (named_port,):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                trial.bind((HOST, port))
                return port
    where = f"port {named_port} is" if named_port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} are"
    raise InputError(f"{where} taken on {HOST}; name another with --port")
