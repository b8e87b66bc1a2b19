"""Fields of a trace's rows: times, lengths and keys, each checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hwprobe.bounds import LONGEST_TOKENS
from hwprobe.errors import InputError
from hwprobe.plain_text import one_line

WORD = (1 << 64) - 1
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# A time stamp is since 1970 in the finest unit that keeps it below this many seconds (the year 2600).
LATEST_S = 2e10
LONGEST_S = 1e10


@dataclass(slots=True)
class FilePlace:
    """Where a reader is in a file: what every complaint begins with."""

    path: Path
    line: int = 0
    last_s: float = -math.inf
    sessions: dict[Any, int] = field(default_factory=dict)

    def wrong(self, what: str) -> InputError:
        """Return an error that names file and line."""
        return InputError(f"{self.path}, line {self.line}: {what}")

    def tokens(self, value: Any, name: str, least: int = 0) -> int:
        """Return a number of tokens. Raises InputError for what is none."""
        if value is None:
            raise self.wrong(f"no '{name}'")
        if isinstance(value, str):
            value = self.number(value, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.wrong(f"'{name}' is {_shown(value)}, no whole number of tokens")
        if not least <= value <= LONGEST_TOKENS:
            raise self.wrong(f"'{name}' is {_shown(value)}; it must be from {least} to {LONGEST_TOKENS:,} tokens")
        return int(value)

    def number(self, value: Any, name: str) -> float:
        """Return a finite number. Raises InputError for anything else."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(f"'{name}' is {_shown(value)}, no number") from None
        if not math.isfinite(number):
            raise self.wrong(f"'{name}' is {_shown(value)}, no number")
        return number

    def span_s(self, value: Any, name: str, unit: str) -> float:
        """Return a time that is not negative, in seconds. Raises InputError for any other."""
        seconds = self.number(value, name) * SECONDS[unit]
        if not 0.0 <= seconds <= LONGEST_S:
            raise self.wrong(f"'{name}' is {_shown(value)}; times must not be negative")
        return seconds

    def after_s(self, seconds: float, name: str) -> float:
        """Return a time that is not before the row above. Raises InputError for one that is."""
        if seconds < self.last_s:
            raise self.wrong(
                f"'{name}' goes back by {self.last_s - seconds:g} s: requests must stand in the order they came; sort "
                "the file by time"
            )
        self.last_s = seconds
        return seconds

    def stamp_s(self, value: Any, name: str) -> float:
        """Return a time since 1970 or an ISO date in seconds, whatever its unit. Raises InputError for no time."""
        if isinstance(value, str) and not value.replace(".", "", 1).lstrip("-").isdigit():
            try:
                moment = datetime.fromisoformat(value.strip())
                return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError):
                raise self.wrong(f"'{name}' is {_shown(value)}, no time (2024-05-10 00:00:00.009930)") from None
        number = self.number(value, name)
        if number < 0:
            raise self.wrong(f"'{name}' is {_shown(value)}; times must not be negative")
        return next((number * scale for scale in SECONDS.values() if number * scale < LATEST_S), number * 1e-9)

    def session(self, name: Any) -> int:
        """Return the number of a session. Raises InputError for a name that is no text and no number."""
        if not isinstance(name, str | int):
            raise self.wrong(f"the session is {_shown(name)}; name it by a text or a number")
        return self.sessions.setdefault(name, len(self.sessions))

    def keys(self, hashes: Any, name: str) -> Sequence[int]:
        """Return prefix hashes as words of 64 bits. Raises InputError for what is no list of numbers or texts."""
        if not isinstance(hashes, list):
            raise self.wrong(f"'{name}' is {_shown(hashes)}, no list of block hashes")
        try:
            return [item & WORD if isinstance(item, int) else key_of(item) for item in hashes]
        except (TypeError, AttributeError):
            raise self.wrong(f"'{name}' holds something else than numbers and texts") from None


def key_of(text: str | bytes) -> int:
    """Return the key of a piece of text: 64 bits of its hash."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
