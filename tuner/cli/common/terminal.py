"""What all commands share: a fast start, consoles, and the JSON promise."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


GARBAGE_THRESHOLD = 100_000


def start_fast() -> None:
    """Leave out what a process of a second never profits from: early garbage collection, maths threads."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def console(*, stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables when piped, and plain when colours are off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, highlight=False, soft_wrap=False)


def print_json(document: Any) -> None:
    """Print exactly one line: the JSON document."""
    from hwprobe.files import encode_json

    sys.stdout.write(encode_json(document, indent=0) + "\n")
