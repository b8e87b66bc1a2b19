"""Traces of one row a request in named columns: Azure's and BurstGPT's CSV, and any other by `--map`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from hwprobe.errors import InputError, did_you_mean
from hwprobe.parsing import ODD
from models.traffic.trace import BLOCK_TOKENS, NO_SESSION, TraceBuilder
from tuner.trace_files.fields import SECONDS, FilePlace
from tuner.trace_files.lines import numbered

FIELDS = ("time", "input", "output", "session", "delay", "hashes")
NEEDED = ("input", "output")
MAP_EXAMPLE = "--map time=started_at --map input=prompt_tokens --map output=completion_tokens"
HASHES = re.compile(r"[\s,;|\[\]]+")
# Without times, requests come so far apart.
APART_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what; `unit` is that of times in numbers (None: seconds since 1970, whatever the unit).

    `skips_failed`: a row without output tokens is a request that failed.
    """

    form: str
    names: Mapping[str, str]
    unit: str | None = None
    delay_unit: str = "s"
    skips_failed: bool = False


AZURE = Columns(form="Azure CSV", names={"time": "TIMESTAMP", "input": "ContextTokens", "output": "GeneratedTokens"})
BURSTGPT = Columns(
    form="BurstGPT CSV",
    names={"time": "Timestamp", "input": "Request tokens", "output": "Response tokens", "session": "Session ID"},
    unit="s",
    skips_failed=True,
)
BURSTGPT_SESSIONS = ("Session ID", "SessionID")


def mapped(texts: Sequence[str]) -> Columns:
    """Read `--map FIELD=COLUMN[:UNIT]` options. Raises InputError for a field that does not exist or is missing."""
    names: dict[str, str] = {}
    units: dict[str, str] = {}
    for text in texts:
        name, _, column = text.partition("=")
        if name not in FIELDS or not column:
            raise InputError(f"--map '{text}': {did_you_mean(name, FIELDS)} write it as in {MAP_EXAMPLE}")
        head, _, unit = column.rpartition(":")
        if head and unit in SECONDS and name in ("time", "delay"):
            column, units[name] = head, unit
        names[name] = column
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise InputError(f"--map leaves out {' and '.join(missing)}: write it as in {MAP_EXAMPLE}")
    return Columns(form="mapped", names=names, unit=units.get("time"), delay_unit=units.get("delay", "s"))


def read_rows(rows: Iterator[Mapping[str, Any]], columns: Columns, place: FilePlace, builder: TraceBuilder) -> None:
    """Take every row. Raises InputError naming the line."""
    names, failed, sent_s = columns.names, 0, -APART_S
    sent: dict[int, float] = {}
    for row in rows:
        osl = place.tokens(row.get(names["output"]), names["output"])
        isl = place.tokens(row.get(names["input"]), names["input"])
        if (columns.skips_failed and osl == 0) or isl == 0:
            failed += 1
            continue
        name = row.get(names["session"]) if "session" in names else None
        session = NO_SESSION if name in (None, "") else place.session(name)
        think_s = float("nan")
        delay = row.get(names["delay"]) if "delay" in names else None
        if "time" in names:
            sent_s = place.after_s(_time_s(row, columns, place), names["time"])
        elif delay in (None, "") or session not in sent:
            sent_s += APART_S
        if delay not in (None, "") and session in sent and "time" not in names:
            think_s = place.span_s(delay, names["delay"], columns.delay_unit)
            sent[session] += think_s
            builder.add(sent[session], isl, osl, session=session, think_s=think_s)
        else:
            sent[session] = sent_s
            builder.add(sent_s, isl, osl, session=session)
        if "hashes" in names:
            builder.add_blocks(_hashes(row.get(names["hashes"]), names["hashes"], place), BLOCK_TOKENS)
    if failed:
        builder.notes.append(f"{failed:,} rows of requests that failed (no tokens) are left out")
    if "time" not in names:
        builder.notes.append(f"no times: requests are taken to come {APART_S:g} s apart")


def _time_s(row: Mapping[str, Any], columns: Columns, place: FilePlace) -> float:
    name = columns.names["time"]
    value = row.get(name)
    if value is None or value == "":
        raise place.wrong(f"no '{name}'")
    return place.stamp_s(value, name) if columns.unit is None else place.span_s(value, name, columns.unit)


def _hashes(value: Any, name: str, place: FilePlace) -> Sequence[int]:
    if isinstance(value, str):
        value = [int(word) if word.isdecimal() else word for word in HASHES.split(value) if word]
    return place.keys(value or [], name)


def csv_rows(stream: IO[bytes], path: Path, place: FilePlace) -> tuple[list[str], Iterator[dict[str, str]]]:
    """Return the columns of a CSV file and its rows by column. Raises InputError for a row of another length."""
    lines = (_text(line, place, number) for number, line in numbered(stream, path))
    reader = csv.reader(lines)
    try:
        header = [name.strip().lstrip("\N{ZERO WIDTH NO-BREAK SPACE}") for name in next(reader)]
    except (StopIteration, csv.Error):
        raise InputError(f"{path} holds no requests") from None

    def rows() -> Iterator[dict[str, str]]:
        try:
            for row in reader:
                if len(row) != len(header):
                    raise place.wrong(f"{len(row)} columns, not {len(header)}; was the file cut off?")
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise place.wrong(f"no CSV ({error})") from None

    return header, rows()


def _text(line: bytes, place: FilePlace, number: int) -> str:
    place.line = number
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise place.wrong("not text in UTF-8") from None


def json_rows(lines: Iterator[tuple[int, bytes]], place: FilePlace) -> Iterator[dict[str, Any]]:
    """Return JSON lines as rows. Raises InputError for a line that is no object."""
    for number, line in lines:
        place.line = number
        try:
            row = msgspec.json.decode(line)
        except ODD as error:
            raise place.wrong(f"not JSON ({error}); was the file cut off?") from None
        if not isinstance(row, dict):
            raise place.wrong("not a JSON object")
        yield row
