"""Mooncake's traces and AIPerf's input files: JSON lines of lengths, block hashes, sessions and delays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hwprobe.bounds import LONGEST_TOKENS
from models.traffic.trace import BLOCK_TOKENS, NO_SESSION, TraceBuilder
from tuner.trace_files.fields import WORD, FilePlace, key_of
from tuner.trace_files.texts import messages_pieces, text_pieces

LONGEST_MS = 1e13
MOST_BLOCK = 65_536


class Row(msgspec.Struct):
    """A line, by Mooncake's names and those AIPerf accepts for the same; times in ms."""

    timestamp: Any = None
    input_length: Any = None
    output_length: Any = None
    hash_ids: list[int | str] | None = None
    session_id: str | int | None = None
    delay: Any = None
    text_input: str | None = None
    messages: list[Any] | None = None
    input_tokens: Any = None
    output_tokens: Any = None
    delay_ms: Any = None
    created_time: Any = None
    block_size: int | None = None


@dataclass(slots=True)
class _Past:
    """A session so far: when its last request was sent, and the pieces of that one with its answer."""

    sent_s: float
    isl: int
    pieces: list[tuple[int, int]]


class MooncakeReader:
    """Reads one row after the other.

    A later row of a session without hashes or texts of its own holds what is new: the prompt is all that came before in
    the session, answers too, and that (AIPerf keeps the history so).
    """

    def __init__(self, place: FilePlace, builder: TraceBuilder, block_tokens: int | None) -> None:
        self._place, self._builder, self._block = place, builder, block_tokens
        self._decoder = msgspec.json.Decoder(Row)
        self._past: dict[int, _Past] = {}

    def read(self, line: bytes) -> None:
        """Take a line. Raises InputError naming it."""
        try:
            row = self._decoder.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self._place.wrong(f"not a request ({error}); was the file cut off?") from None
        if row.session_id is None and type(row.input_length) is int and type(row.output_length) is int:
            stamp = row.timestamp
            if (type(stamp) is int or type(stamp) is float) and row.text_input is None and row.messages is None:
                self._plain(row, stamp * 1e-3)
                return
        self._any(row)

    def _plain(self, row: Row, sent_s: float) -> None:
        """Take what nearly all rows are, without a second look at what is well."""
        place, isl, osl = self._place, row.input_length, row.output_length
        if not (0.0 <= sent_s <= LONGEST_MS * 1e-3 and place.last_s <= sent_s):
            place.after_s(place.span_s(row.timestamp, "timestamp", "ms"), "timestamp")
        place.last_s = sent_s
        if not (1 <= isl <= LONGEST_TOKENS and 0 <= osl <= LONGEST_TOKENS):
            place.tokens(isl, "input_length", 1), place.tokens(osl, "output_length")
        self._builder.add(sent_s, isl, osl)
        if row.hash_ids:
            self._builder.add_blocks(self._keys(row.hash_ids), self._block_of(row))

    def _any(self, row: Row) -> None:
        place = self._place
        session = NO_SESSION if row.session_id is None else place.session(row.session_id)
        past = self._past.get(session) if session != NO_SESSION else None
        sent_s, think_s = self._when(row, past)
        osl = place.tokens(_first(row.output_length, row.output_tokens, 0), "output_length")
        whole = row.hash_ids or row.text_input is not None or row.messages is not None
        pieces = self._pieces(row)
        length = _first(row.input_length, row.input_tokens)
        isl = (
            sum(tokens for _, tokens in pieces)
            if length is None and pieces
            else place.tokens(length, "input_length", 1)
        )
        if past is not None and not whole:
            pieces, isl = [*past.pieces, (self._new_key(session, isl), isl)], past.isl + isl
        elif not pieces and session != NO_SESSION:
            pieces = [(self._new_key(session, isl), isl)]
        place.tokens(isl, "input_length", 1)
        self._builder.add(sent_s, isl, osl, session=session, think_s=think_s)
        answer = [(self._new_key(session, -1 - osl), osl)] if session != NO_SESSION and osl else []
        if session == NO_SESSION or sum(tokens for _, tokens in pieces) < isl:
            answer = []
        self._builder.add_pieces([*pieces, *answer], len(answer))
        if session != NO_SESSION:
            self._past[session] = _Past(sent_s, isl + osl, [*pieces, *answer])

    def _when(self, row: Row, past: _Past | None) -> tuple[float, float]:
        """Return when a request is sent, and how long after the answer before it (NaN: at its own time)."""
        place, stamp, delay = self._place, _first(row.timestamp, row.created_time), _first(row.delay, row.delay_ms)
        if past is not None and delay is not None and stamp is None:
            think_s = place.span_s(delay, "delay", "ms")
            return past.sent_s + think_s, think_s
        if stamp is None:
            return (0.0 if past is None else past.sent_s), (float("nan") if past is None else 0.0)
        sent_s = place.span_s(stamp, "timestamp", "ms")
        if row.session_id is None:
            return place.after_s(sent_s, "timestamp"), float("nan")
        if past is not None and sent_s < past.sent_s:
            raise place.wrong(f"'timestamp' is before that of the session's row above ({past.sent_s * 1e3:g} ms)")
        return sent_s, float("nan")

    def _pieces(self, row: Row) -> list[tuple[int, int]]:
        """Return what of the prompt has a name: its blocks by hash, or its texts."""
        place = self._place
        if row.hash_ids:
            block, keys = self._block_of(row), self._keys(row.hash_ids)
            prompt_tokens = place.tokens(_first(row.input_length, row.input_tokens), "input_length", 1)
            return [
                (key, min(block, prompt_tokens - at * block))
                for at, key in enumerate(keys)
                if prompt_tokens > at * block
            ]
        if row.messages is not None:
            return messages_pieces(place, row.messages)
        return text_pieces(row.text_input) if row.text_input is not None else []

    def _block_of(self, row: Row) -> int:
        size = self._block or row.block_size or BLOCK_TOKENS
        return size if 1 <= size <= MOST_BLOCK else self._place.tokens(-1, "block_size", 1)

    @staticmethod
    def _keys(hashes: list[int | str]) -> list[int]:
        return [item & WORD if isinstance(item, int) else key_of(item) for item in hashes]

    def _new_key(self, session: int, tokens: int) -> int:
        """Return a key that no other piece has."""
        return key_of(f"{session}/{self._place.line}/{tokens}")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
