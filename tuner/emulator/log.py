"""The emulated server's output, in SGLang's format."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """Print one log line with SGLang's time stamp."""
    write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")


def write(text: str) -> None:
    """Print as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()
