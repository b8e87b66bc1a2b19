"""What a server said of its load while it was measured: `trials/N/loads.jsonl`, a line every few seconds.

It is no evidence: nothing is learned from it, and a run without it only shows less.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

LOADS_FILE = "loads.jsonl"
# The end of the file that is read: some hours of lines.
TAIL_BYTES = 256_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """A server's load at a moment: seconds since the epoch, clients of the point, requests that run and that wait over
    all ranks, and the share of the fullest rank's KV cache in use. None where the server does not say."""

    at_s: float
    clients: int
    running: float | None = None
    queued: float | None = None
    kv_share: float | None = None


def append_sample(folder: Path, sample: LoadSample) -> None:
    """Add a line to a trial's folder; a full disk costs the line, not the measurement."""
    with contextlib.suppress(OSError), (folder / LOADS_FILE).open("ab") as stream:
        stream.write(msgspec.json.encode(sample) + b"\n")


def read_samples(folder: Path) -> list[LoadSample]:
    """Return the last samples of a trial in order; lines that are none are left out, a missing file has none."""
    file = folder / LOADS_FILE
    try:
        if not (file.is_file() and file.resolve().is_relative_to(folder.resolve())):
            return []  # a run that was received may link elsewhere
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return []
    samples = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
            samples.append(msgspec.json.decode(line, type=LoadSample))
    return samples
