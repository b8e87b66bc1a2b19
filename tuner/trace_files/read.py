"""A trace from a file: its form is told by its first line, or by `--map`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec

from hwprobe.errors import InputError
from hwprobe.parsing import ODD
from models.traffic.trace import Trace, TraceBuilder
from tuner.trace_files.chats import STARTS_APART_S, LogReader, read_conversations, take_conversation
from tuner.trace_files.columns import (
    AZURE,
    BURSTGPT,
    BURSTGPT_SESSIONS,
    MAP_EXAMPLE,
    Columns,
    csv_rows,
    json_rows,
    mapped,
    read_rows,
)
from tuner.trace_files.fields import FilePlace
from tuner.trace_files.lines import numbered, opened
from tuner.trace_files.mooncake import MooncakeReader

ESTIMATED = "no tokenizer here: texts count 4 characters a token"
UNTIMED = f"no times: a conversation is taken to begin every {STARTS_APART_S:g} s, its turns follow at once"
MOONCAKE = {"input_length", "input_tokens", "hash_ids", "text_input"}
FORMS = (
    "Mooncake or AIPerf JSON lines, ShareGPT, Azure's or BurstGPT's CSV, SGLang's benchmark output with "
    "--output-details, a log of OpenAI-style requests"
)


def read_trace(path: Path, mapping: Sequence[str] = (), block_tokens: int | None = None) -> Trace:
    """Read a file of requests. Raises InputError naming file and line; nothing is guessed from a row that is wrong."""
    place, builder = FilePlace(path), TraceBuilder(form="")
    columns = mapped(mapping) if mapping else None
    with opened(path) as stream:
        start = stream.peek(1)[:1] if hasattr(stream, "peek") else b""
        if start == b"[" and columns is None:
            _sharegpt(stream, place, builder)
        elif start in (b"{", b"\n", b" ", b"\r"):
            _json_lines(numbered(stream, path), place, builder, columns, block_tokens)
        else:
            _csv(stream, path, place, builder, columns)
    return builder.trace(str(path))


def _sharegpt(stream: IO[bytes], place: FilePlace, builder: TraceBuilder) -> None:
    builder.form = "ShareGPT"
    builder.notes += [ESTIMATED, UNTIMED]
    try:
        conversations = msgspec.json.decode(stream.read())
    except ODD as error:
        raise InputError(f"{place.path}: not a JSON list ({error}); was the file cut off?") from None
    except MemoryError:
        raise InputError(f"{place.path} does not fit into memory: cut it") from None
    read_conversations(place, conversations, builder)


def _csv(stream: IO[bytes], path: Path, place: FilePlace, builder: TraceBuilder, columns: Columns | None) -> None:
    header, rows = csv_rows(stream, path, place)
    columns = columns or _published(header)
    if columns is None:
        shown = ", ".join(header[:12])
        raise InputError(
            f"{path}, line 1: not a form that is known ({FORMS}); name the columns: {MAP_EXAMPLE} [{shown}]"
        )
    optional = {"session"} if columns is BURSTGPT else set()
    names = {field: name for field, name in columns.names.items() if name in header or field not in optional}
    session = next((name for name in BURSTGPT_SESSIONS if name in header), None)
    if columns is BURSTGPT and session is not None:
        names["session"] = session
    missing = sorted(name for name in names.values() if name not in header)
    if missing:
        raise InputError(f"{path}, line 1: no column {', '.join(missing)}; there are {', '.join(header[:12])}")
    builder.form = columns.form
    read_rows(rows, replace(columns, names=names), place, builder)


def _published(header: Sequence[str]) -> Columns | None:
    """Return the published form a header is near to: one column is enough to miss the others by name."""
    if {"ContextTokens", "GeneratedTokens"} & set(header):
        return AZURE
    return BURSTGPT if {"Request tokens", "Response tokens"} & set(header) else None


def _json_lines(
    lines: Iterator[tuple[int, bytes]],
    place: FilePlace,
    builder: TraceBuilder,
    columns: Columns | None,
    block_tokens: int | None,
) -> None:
    first = next(lines, None)
    if first is None:
        return
    lines = chain([first], lines)
    if columns is not None:
        builder.form = columns.form
        read_rows(json_rows(lines, place), columns, place, builder)
        return
    place.line = first[0]
    row = _object(first[1], place)
    if "input_lens" in row or "random_input_len" in row or {"backend", "request_throughput"} <= set(row):
        builder.form = "SGLang benchmark"
        for run in json_rows(lines, place):
            _benchmark(run, place, builder)
    elif "conversations" in row or "conversation" in row:
        builder.form = "ShareGPT"
        builder.notes += [ESTIMATED, UNTIMED]
        for conversation in json_rows(lines, place):
            take_conversation(place, conversation, builder)
    elif MOONCAKE & set(row) or ("messages" in row and "output_length" in row):
        builder.form = "AIPerf" if {"session_id", "text_input", "messages", "delay"} & set(row) else "Mooncake"
        _each(lines, place, MooncakeReader(place, builder, block_tokens).read)
        if {"text_input", "messages"} & set(row):
            builder.notes.append(ESTIMATED)
    elif {"messages", "request", "body", "usage", "prompt"} & set(row):
        builder.form = "request log"
        builder.notes.append(ESTIMATED)
        _each(lines, place, LogReader(place, builder).read)
    else:
        shown = ", ".join(list(row)[:12])
        raise place.wrong(f"not a form that is known ({FORMS}); name the fields: {MAP_EXAMPLE} [{shown}]")


def _object(line: bytes, place: FilePlace) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except ODD as error:
        raise place.wrong(f"not JSON ({error}); was the file cut off?") from None
    if not isinstance(row, dict):
        raise place.wrong("not a JSON object")
    return row


def _each(lines: Iterable[tuple[int, bytes]], place: FilePlace, take: Any) -> None:
    for place.line, line in lines:
        take(line)


def _benchmark(run: dict[str, Any], place: FilePlace, builder: TraceBuilder) -> None:
    """Take a run of SGLang's benchmark: its requests' lengths, at the rate they were served."""
    inputs, outputs = run.get("input_lens"), run.get("output_lens")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise place.wrong("no 'input_lens' and 'output_lens' of equal number: run the benchmark with --output-details")
    duration_s = place.span_s(run.get("duration"), "duration", "s")
    start_s = builder.sent_s[-1] if len(builder) else 0.0
    apart_s = duration_s / max(len(inputs), 1)
    for number, (isl, osl) in enumerate(zip(inputs, outputs, strict=True)):
        osl = place.tokens(osl, "output_lens")
        builder.add(start_s + number * apart_s, place.tokens(isl, "input_lens", 1), osl)
    note = "the benchmark keeps no times: its requests are spread evenly over its duration"
    if note not in builder.notes:
        builder.notes.append(note)
