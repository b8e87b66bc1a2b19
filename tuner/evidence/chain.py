"""Lines that vouch for each other: every record carries a hash of itself and of all before it.

A line that was changed, doubled, moved or taken out breaks the chain there. A small file beside the lines, the head,
counts them: so missing last lines show too. SHA-256, cut to 64 bits: against accidents, not against forgery.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hwprobe.errors import InputError
from hwprobe.files import encode_json, read_bytes, write_own

_KEY = b',"chain":"'
_DIGITS = 16
_TAIL = len(_KEY) + _DIGITS + 2
WAY_OUT = "`sgtune runs repair {run}` keeps what is sound and says what it leaves out"


@dataclass(frozen=True, slots=True)
class Link:
    """A line as it stands in a file: the record alone, and the chain's hash as the line states it ('' for none)."""

    body: bytes
    stated: str

    @classmethod
    def of(cls, line: bytes) -> Link:
        """Take a line apart."""
        tail = line[-_TAIL:]
        if len(tail) == _TAIL and tail.startswith(_KEY) and tail.endswith(b'"}'):
            return cls(line[:-_TAIL] + b"}", tail[len(_KEY) : -2].decode("ascii", errors="replace"))
        return cls(line, "")

    def follows(self, before: str) -> bool:
        """Whether the line follows a chain that stood at `before`."""
        return self.stated == after(before, self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How many lines there were when the last one was written, and where the chain stood."""

    records: int
    chain: str


def start_of(folder: Path) -> str:
    """Return where the chain of a run starts: at its question and its machine."""
    digest = hashlib.sha256()
    for name in ("run.toml", "hardware.json"):
        file = folder / name
        digest.update((read_bytes(file, name) if file.is_file() else b"") + b"\0")
    return digest.hexdigest()[:_DIGITS]


def after(before: str, body: bytes) -> str:
    """Return where the chain stands after a record."""
    return hashlib.sha256(before.encode() + body).hexdigest()[:_DIGITS]


def sealed(body: bytes, before: str) -> tuple[bytes, str]:
    """Return the line of a record (a JSON object, no newline) and where the chain stands after it."""
    chain = after(before, body)
    return body[:-1] + _KEY + chain.encode() + b'"}', chain


def head_file(file: Path) -> Path:
    """Return the file that says how many lines `file` had."""
    return file.with_suffix(".head")


def read_head(file: Path) -> Head | None:
    """Return the head of a file of lines, None if it is missing or unreadable."""
    try:
        return msgspec.json.decode(read_bytes(head_file(file), "head"), type=Head)
    except (InputError, msgspec.DecodeError, ValueError):
        return None


def write_head(file: Path, head: Head) -> None:
    """Say how many lines `file` has; they are on disk already. Raises SgtuneError where the disk refuses."""
    write_own(head_file(file), encode_json(head, indent=0) + "\n")


def whole_lines(file: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file, without newlines; an incomplete last line is left out. Raises OSError."""
    if not file.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield line[:-1]
