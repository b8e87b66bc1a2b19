"""One HTTP/1.1 connection that reads server-sent events: as little work per event as Python allows.

Why not a library: docs/decisions/0005-own-stream-reader.md.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Final

TOKENS: Final = b'"completion_tokens":'
DONE: Final = b"[DONE]"
BIN_S: Final = 0.1
HEX: Final = b"0123456789abcdefABCDEF"
LONGEST_HEAD: Final = 65536
LONGEST_CHUNK_HEAD: Final = 4096
LONGEST_EVENT: Final = 16 << 20  # SGLang repeats the whole text in every event
LARGEST_BODY: Final = 1 << 50
NO_LIMIT: Final = 1 << 40
LONGEST_NUMBER: Final = 18


class Tally:
    """What all connections of a process have seen together: tokens per tenth of a second, gaps between chunks."""

    def __init__(self) -> None:
        self.tokens_by_bin: dict[int, int] = {}
        self.gaps_s = array("f")
        self.gap_marks: list[tuple[int, int]] = []
        self._bin = -1
        self.last_event = time.monotonic()

    def add(self, now: float, tokens: int) -> None:
        bin_ = int(now / BIN_S)
        if bin_ != self._bin:
            self._bin = bin_
            self.gap_marks.append((bin_, len(self.gaps_s)))
        self.tokens_by_bin[bin_] = self.tokens_by_bin.get(bin_, 0) + tokens
        self.last_event = now


class Stream(asyncio.Protocol):
    """A connection that carries one request after the other; `finished(stream)` is called at each end.

    Times are CLOCK_MONOTONIC seconds. `tokens` is the server's own count where it sends one with every event (SGLang's
    /generate), else one per event until the closing usage says better.
    """

    def __init__(self, tally: Tally, finished: Callable[[Stream], None]) -> None:
        self._tally, self._finished = tally, finished
        self._transport: asyncio.Transport | None = None
        self.busy = False
        self.closed = False
        self._requests = 0
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.sent = self.first = self.last = 0.0
        self.tokens = self.chunks = 0
        self._most_tokens = NO_LIMIT
        self.final = b""
        self.error = ""
        self._buffer = b""
        self._text = b""
        self._in_head = True
        self._left = -1  # bytes left of the body or the chunk
        self._chunked = self._keep = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, payload: bytes, *, most_tokens: int = NO_LIMIT) -> None:
        """Send a request: head and body in one piece. An answer of more than `most_tokens` ends as an error."""
        assert self._transport is not None
        self._reset()
        self._most_tokens = most_tokens
        self._requests += 1
        self.busy = True
        self.sent = time.monotonic()
        self._transport.write(payload)

    def close(self) -> None:
        """Close; a request in flight is the server's to abort."""
        self.busy = False
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.busy:
            self._end(f"connection lost: {error or 'closed by the server'}")

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self.busy:
            return
        try:
            self._read(data, now)
        except (ValueError, IndexError, OverflowError) as error:
            if self.busy:
                self._end(f"not an answer of HTTP/1.1: {error}")

    def _read(self, data: bytes, now: float) -> None:
        if self._buffer:
            data = self._buffer + data
        if self._in_head:
            data = self._read_head(data)
        if not self._in_head:
            self._read_body(data, now)

    def _read_body(self, data: bytes, now: float) -> None:
        request = self._requests  # at its end the next one may be sent at once, and this state is that one's
        while data and self.busy:
            if self._left <= 0:
                after = self._chunk_head(data) if self._chunked else None
                if self._requests != request:
                    return
                if after is None:
                    break
                data = after
                continue
            part = data[: self._left]
            data = data[self._left :]
            self._left -= len(part)
            self._events(part, now)
            if not self._chunked and self._left == 0:
                self._end("")
                return
        self._buffer = data

    def _chunk_head(self, data: bytes) -> bytes | None:
        """Read the size of the next chunk; return what follows it, None while it is not all there."""
        line, line_end, rest = data.partition(b"\r\n")
        if not line_end:
            if len(data) > LONGEST_CHUNK_HEAD:
                self._end("a chunk whose size has no end")
            return None
        if line:  # an empty one is the end of the chunk before
            size = line.partition(b";")[0].strip()
            if not size.isalnum() or len(size) > 12 or size.strip(HEX):
                self._end(f"not a chunk size: {line[:40]!r}")
            else:
                self._left = int(size, 16)
                if self._left == 0:
                    self._end("")
        return rest

    def _read_head(self, data: bytes) -> bytes:
        # the blank line that ends a chunked answer may come after the answer was done with
        head, blank_line, rest = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
        if not blank_line:
            self._buffer = data
            if len(data) > LONGEST_HEAD:
                self._end("the server's answer has no end of its head")
            return b""
        self._in_head, self._buffer = False, b""
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._chunked = fields.get(b"transfer-encoding", b"").lower() == b"chunked"
        self._keep = fields.get(b"connection", b"").lower() != b"close"
        if not self._chunked:
            self._left = int(fields.get(b"content-length", b"0"))
            if not 0 <= self._left < LARGEST_BODY:
                self._end("not a length of a body")
            elif self._left == 0:
                self._end("")
        return rest

    def _events(self, part: bytes, now: float) -> None:
        """Count the events that end in this part; what follows the last of them is kept."""
        text = self._text + part if self._text else part
        if self.status != 200:
            self._text = text[:4096]
            return
        end = text.rfind(b"\n\n")
        if end < 0:
            self._text = text
            if len(text) > LONGEST_EVENT:
                self._end(f"an event of more than {LONGEST_EVENT >> 20} MiB")
            return
        self._text = text[end + 2 :]
        events = text[:end].split(b"\n\n")
        if events[-1].endswith(DONE):
            events.pop()
        if not events:
            return
        tally, before = self._tally, self.tokens
        self.final = events[-1]
        self.chunks += len(events)
        at = self.final.rfind(TOKENS)
        self.tokens = _number(self.final, at + len(TOKENS)) if at >= 0 else before + len(events)
        if self.tokens > self._most_tokens or self.chunks > self._most_tokens:
            self.tokens, claimed = before, max(self.tokens, self.chunks)
            self._end(f"the answer does not end: {claimed:.3g} tokens, {self._most_tokens} at most were expected")
            return
        if self.tokens > before:
            tally.add(now, self.tokens - before)
            if before == 0:
                self.first = now
            else:
                tally.gaps_s.append(now - self.last)
            self.last = now

    def _end(self, error: str) -> None:
        if not self.busy:
            return
        self.busy = False
        self.error = error
        if not error and self.status != 200:
            self.error = f"HTTP {self.status}: {self._text[:300].decode(errors='replace')}"
        if not self._keep or error:
            self.closed = True
            if self._transport is not None:
                self._transport.abort()
        self._finished(self)


def _number(text: bytes, start: int) -> int:
    """Read the integer at `start`, blanks before it allowed."""
    end = start
    while end < len(text) and text[end] in b" 0123456789":
        end += 1
    digits = text[start:end].strip()
    return int(digits[:LONGEST_NUMBER]) if digits.isdigit() else 0
