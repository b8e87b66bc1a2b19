"""The stream reader against every way a server may cut its answer into pieces."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.bench.http_stream import Stream, Tally
from tuner.bench.worker import closing_figures
from tuner.choices import Backend

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(tokens: int) -> bytes:
    meta = {"prompt_tokens": 9, "completion_tokens": tokens, "cached_tokens": 3}
    body = json.dumps({"text": "a\nb", "output_ids": list(range(tokens)), "meta_info": meta})
    return b"data: " + body.encode() + b"\n\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class Wire(asyncio.Transport):
    """Takes what is written; says whether it was cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def stream_and_ends() -> tuple[Stream, list[tuple[int, int, str]], Wire]:
    ends: list[tuple[int, int, str]] = []

    def finished(stream: Stream) -> None:
        ends.append((stream.tokens, stream.chunks, stream.error))
        if not stream.closed:
            stream.send(b"next")  # at once, as a closed loop does

    stream, wire = Stream(Tally(), finished), Wire()
    stream.connection_made(wire)
    stream.send(b"first")
    return stream, ends, wire


ANSWER = HEAD + chunked(event(1), event(2), event(5), b"data: [DONE]\n\n")


@given(cuts=st.lists(st.integers(1, 3 * len(ANSWER) - 1), max_size=30))
def test_however_three_answers_on_one_connection_are_cut_they_are_read_whole(cuts: list[int]) -> None:
    stream, ends, wire = stream_and_ends()
    data = ANSWER * 3
    edges = [0, *sorted(set(cuts)), len(data)]
    # a server answers only what it was asked: no piece spans two answers
    pieces = [piece for a, b in itertools.pairwise(edges) for piece in split_at_answers(data, a, b)]
    for piece in pieces:
        stream.data_received(piece)
    assert [(tokens, error) for tokens, _, error in ends] == [(5, "")] * 3
    assert not wire.aborted


def split_at_answers(data: bytes, start: int, end: int) -> list[bytes]:
    edges = [start, *(n * len(ANSWER) for n in (1, 2) if start < n * len(ANSWER) < end), end]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_an_error_keeps_the_servers_words() -> None:
    stream, ends, _wire = stream_and_ends()
    stream.data_received(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\ntoo long!")
    assert ends == [(0, 0, "HTTP 400: too long!")]


def test_a_broken_connection_is_an_error_of_the_request_in_flight() -> None:
    stream, ends, _ = stream_and_ends()
    stream.data_received(HEAD + b"5")
    stream.connection_lost(None)
    assert ends[0][2].startswith("connection lost")


def test_what_is_no_http_ends_as_an_error_not_as_a_crash() -> None:
    stream, ends, _ = stream_and_ends()
    stream.data_received(HEAD + b"zz\r\nhello")
    assert "not a chunk size" in ends[0][2]


@pytest.mark.parametrize(
    ("backend", "closing", "expected"),
    [
        (Backend.SGLANG, event(7), (9, 7, 3)),
        (Backend.OPENAI, b'data: {"usage":{"prompt_tokens":4,"completion_tokens":6}}', (4, 6, 0)),
        (Backend.OPENAI, b"data: {broken", (0, 2, 0)),
        (Backend.OPENAI_CHAT, b"", (0, 2, 0)),
    ],
)
def test_the_last_event_says_what_was_counted(backend: Backend, closing: bytes, expected: tuple[int, ...]) -> None:
    assert closing_figures(backend, closing, 2) == expected
