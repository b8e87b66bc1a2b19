"""Lines of a trace file, one by one: of a regular file of text, bounded in size, each with its number."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hwprobe.errors import InputError
from hwprobe.files import own_stream

MOST_TRACE_BYTES = 1 << 30
LONGEST_LINE = 64 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
PACKED = {
    b"\x1f\x8b": "gzip (`gunzip`)", b"BZh": "bzip2 (`bunzip2`)", b"\xfd7zXZ": "xz (`unxz`)",
    b"\x28\xb5\x2f\xfd": "zstd (`unzstd`)", b"PK\x03\x04": "zip (`unzip`)", b"PAR1": "Parquet (write it as JSON lines)",
}  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a trace for reading. Raises InputError for what is no text, or larger than a GiB."""
    try:
        own = own_stream(path)
        handle = os.dup(own) if own is not None else os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            about = os.fstat(handle)
            if own is None and not stat.S_ISREG(about.st_mode):
                raise InputError(f"traffic '{path}' is not a file; name a file of requests")
            if about.st_size > MOST_TRACE_BYTES:
                raise InputError(
                    f"traffic '{path}' holds {about.st_size / (1 << 30):.1f} GiB, the most that is read is 1 GiB: cut "
                    "it (`head -n 1000000`)"
                )
            _check_text(stream, path)
            if hasattr(stream, "peek") and stream.peek(3)[:3] == BYTE_ORDER_MARK:
                stream.read(3)
            yield stream
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot read traffic '{path}': {why}") from error


def _check_text(stream: IO[bytes], path: Path) -> None:
    start = stream.peek(8)[:8] if hasattr(stream, "peek") else b""
    if start.startswith(UTF_16):
        raise InputError(f"traffic '{path}' is text in UTF-16: write it as UTF-8 (`iconv -f utf-16 -t utf-8`)")
    for magic, how in PACKED.items():
        if start.startswith(magic):
            raise InputError(f"traffic '{path}' is packed with {how}: unpack it first")


def numbered(stream: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Return the lines that are not blank, with their numbers from 1 on. Raises InputError for an endless one."""
    number, total = 0, 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        total += len(line)
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise InputError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; a request is one line")
        if total > MOST_TRACE_BYTES:
            raise InputError(f"{path}, line {number}: more than 1 GiB until here; cut it (`head -n 1000000`)")
        if not line.isspace():
            yield number, line
