"""Keeps a component up for a person at another terminal: says how to speak to it, and waits for Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path


def stay(environment: Mapping[str, str], file: Path, next_step: str) -> None:
    """Write the environment to a file that a shell can read, name it, and wait until Ctrl-C or SIGTERM."""
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
    sys.stdout.write(f"it is up; in another terminal:  . {file}\nthen:  {next_step}\nCtrl-C ends it.\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
