"""Reading and writing files so that a crash never leaves half a file and a user never sees a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hwprobe.errors import InputError

T = TypeVar("T")


def read_bytes(path: Path, what: str) -> bytes:
    """Return the file's bytes. Raises InputError naming `what` the file was meant to be."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {what} '{path}': {error.strerror or error}") from error


def write_atomic(path: Path, text: str, *, executable: bool = False, durable: bool = True) -> None:
    """Write `text` so that the file is either the old one or the whole new one, never half.

    `durable` waits until it is on disk; without it a power cut may leave the old file, or none.
    Raises InputError when the folder cannot be written: the caller named it.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o755 if executable else 0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write '{path}': {error.strerror or error}; name a folder you may write to") from error


def decode_json(data: bytes | str, kind: type[T], where: str) -> T:
    """Decode and validate JSON into `kind`. Raises InputError that names the file and the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_plain(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error


def encode_json(value: Any, *, indent: int = 2) -> str:
    """Encode a value as JSON text, indented for people (indent=0: one line)."""
    raw = msgspec.json.encode(value)
    return (msgspec.json.format(raw, indent=indent) if indent else raw).decode()


def content_hash(value: Any) -> str:
    """Return a short hash of a value's JSON form."""
    return hashlib.sha256(encode_json(value, indent=0).encode()).hexdigest()[:16]


def _plain(message: str) -> str:
    """Turn msgspec's "Object missing required field `x` - at `$.gpus[0]`" into plain words."""
    problem, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    problem = problem.replace("Object missing required field", "missing field").replace("`", "'")
    return f"{problem} (at {place})" if place else problem
