"""What all commands share: a fast start, consoles, and the JSON promise."""

from __future__ import annotations

import gc
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from hwprobe.plain_text import clean

if TYPE_CHECKING:
    from rich.console import Console


GARBAGE_THRESHOLD = 100_000
MOST_SHOWN = 1_000_000  # characters of one text
PIPED_COLUMNS = 160  # of what is no terminal
# A bracket that opens none of the styles the views use, and is not escaped yet.
NOT_OURS = re.compile(r"(?<!\\)\[(?!(?:/|bold|dim|(?:bold )?(?:green|red|yellow|cyan))\])")


def start_fast() -> None:
    """Leave out what a process of a second never profits from: early garbage collection, maths threads."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def console(*, stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables when piped, and plain when colours are off.

    Text is text: of markup only our own few styles count, and control characters are shown, not obeyed.
    """
    from rich.console import Console
    from rich.errors import MarkupError
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            plain = clean(text, MOST_SHOWN)
            styled = plain if how.get("markup") is False else NOT_OURS.sub(r"\\[", plain)
            try:
                return super().render_str(styled, **how)
            except MarkupError:  # a style that somebody's name closes
                return Text(plain)

    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(
        file=stream, width=None if stream.isatty() else PIPED_COLUMNS, highlight=False, soft_wrap=False, emoji=False
    )


def print_json(document: Any) -> None:
    """Print exactly one line: the JSON document."""
    from hwprobe.files import encode_json

    sys.stdout.write(encode_json(document, indent=0) + "\n")
