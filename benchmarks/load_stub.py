"""A server of a known schedule: every stream gets its first token after TTFT and one more every TPOT, with jitter.

    python benchmarks/load_stub.py --port 31000 --ttft-ms 200 --tpot-ms 30 --jitter-ms 2

Speaks SGLang's streaming /generate and OpenAI's streaming /v1/completions, and nothing else well. It is lean: what a
load generator measures against it is the generator's own error; uvloop is used where it is installed. GET /stats says
what the server saw of its clients, whoever they are (streams in flight, their time integral, tokens sent), and how late
it was itself with first tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import sys
from collections.abc import Callable
from typing import cast

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TAIL = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
OUTPUT = re.compile(rb'"max_(?:new_|completion_)?tokens": ?(\d+)')


def plain(body: bytes) -> bytes:
    """Return a whole answer with this JSON body."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunk(text: bytes) -> bytes:
    """Return one server-sent event as one HTTP chunk."""
    event = b"data: " + text + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


class Schedule:
    """The truth, and the bytes that tell it."""

    def __init__(self, ttft_s: float, tpot_s: float, jitter_s: float, seed: int) -> None:
        self.ttft_s, self.tpot_s, self.jitter_s = ttft_s, tpot_s, jitter_s
        self._random = random.Random(seed)
        self._events: dict[tuple[int, int, bool], bytes] = {}

    def event(self, prompt: int, number: int, last: bool) -> bytes:
        """Return the event of the `number`-th token as SGLang's /generate sends it."""
        key = (prompt, number, last)
        event_bytes = self._events.get(key)
        if event_bytes is None:
            meta = {"id": "0", "prompt_tokens": prompt, "completion_tokens": number, "cached_tokens": 0,
                    "finish_reason": {"type": "length", "length": number} if last else None}  # fmt: skip
            text = json.dumps({"text": "", "output_ids": [7], "meta_info": meta}).encode()
            event_bytes = self._events[key] = chunk(text)
        return event_bytes

    def jitter(self) -> float:
        """Return how much later than planned one token comes, in seconds (half-normal)."""
        return abs(self._random.gauss(0.0, self.jitter_s)) if self.jitter_s else 0.0


def completion(choices: list[dict[str, object]], **more: object) -> bytes:
    """Return one event of OpenAI's streaming /v1/completions."""
    head = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "stub"}
    return chunk(json.dumps({**head, "choices": choices, **more}).encode())


def choice(reason: str | None) -> dict[str, object]:
    """Return a choice that adds one token: one letter, so that a tokenizer of single bytes counts it as one."""
    return {"index": 0, "text": "a", "logprobs": None, "finish_reason": reason}


COMPLETION, LAST_COMPLETION = completion([choice(None)]), completion([choice("length")])


def completed(prompt: int, number: int, last: bool) -> bytes:
    """Return the event of a completion's token."""
    return LAST_COMPLETION if last else COMPLETION


def completed_with_usage(prompt: int, number: int, last: bool) -> bytes:
    """Return the event of a completion's token, and the usage after the last."""
    if not last:
        return COMPLETION
    usage = {"prompt_tokens": prompt, "completion_tokens": number, "total_tokens": prompt + number}
    return LAST_COMPLETION + completion([], usage=usage)


def prompt_tokens(body: bytes) -> int:
    """Return how long a completion's prompt is: token ids are counted, a text has one token a byte."""
    prompt = json.loads(body).get("prompt", "")
    prompt = prompt[0] if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else prompt
    return len(prompt) if isinstance(prompt, list) else len(prompt.encode())


class Seen:
    """What the server saw of its clients. Times are the loop's, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._integral_s = 0.0
        self.in_flight = self.tokens = self.requests = self.firsts = 0
        self.first_late_s = 0.0

    def change(self, by: int) -> None:
        """Count a stream that starts (+1) or ends (-1)."""
        now = self._clock()
        self._integral_s += self.in_flight * (now - self._at)
        self._at = now
        self.in_flight += by

    def answer(self) -> bytes:
        """Return the counters as JSON; the mean in flight between two answers is the integrals' difference by time."""
        self.change(0)
        figures = {"time_s": self._at, "in_flight": self.in_flight, "stream_s": self._integral_s,
                   "tokens": self.tokens, "requests": self.requests,
                   "firsts": self.firsts, "first_late_s": self.first_late_s}  # fmt: skip
        return json.dumps(figures).encode()


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, schedule: Schedule, counters: Seen, call_at: Callable[..., asyncio.TimerHandle]) -> None:
        self._schedule, self._seen, self._call_at = schedule, counters, call_at
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not an instance of it

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._busy:
            self._seen.change(-1)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank_line, body = self._buffer.partition(b"\r\n\r\n")
        if not blank_line:
            return
        length = LENGTH.search(head)
        if length is not None and len(body) < int(length.group(1)):
            return
        self._buffer = b""
        path = head.split(b" ", 2)[1]
        if path == b"/generate":
            self._start(body, body.count(b",", 0, body.find(b"]")) + 1, self._schedule.event)
        elif path == b"/v1/completions":
            event = completed_with_usage if b'"include_usage"' in body else completed
            self._start(body, prompt_tokens(body), event)
        elif path in (b"/server_info", b"/v1/models"):
            self._transport.write(plain(b'{"served_model_name": "stub", "version": "0", "data": [{"id": "stub"}]}'))
        else:
            self._transport.write(plain(self._seen.answer() if path == b"/stats" else b"{}"))

    def _start(self, body: bytes, prompt: int, event: Callable[[int, int, bool], bytes]) -> None:
        output_match = OUTPUT.search(body)
        self._wanted = int(output_match.group(1)) if output_match else 16
        self._prompt, self._event = prompt, event
        self._sent = 0
        self._first = self._loop.time() + self._schedule.ttft_s
        self._busy = True
        self._seen.change(1)
        self._transport.write(HEAD)
        self._due = self._first + self._schedule.jitter()
        self._timer = self._call_at(self._due, self._first_token)

    def _first_token(self) -> None:
        self._seen.firsts += 1
        self._seen.first_late_s += self._loop.time() - self._due
        self._token()

    def _token(self) -> None:
        self._sent += 1
        self._seen.tokens += 1
        last = self._sent == self._wanted
        event = self._event(self._prompt, self._sent, last)
        if last:
            self._busy = False
            self._seen.requests += 1
            self._seen.change(-1)
            self._transport.write(event + TAIL)
        else:
            self._transport.write(event)
            due = self._first + self._sent * self._schedule.tpot_s + self._schedule.jitter()
            self._timer = self._call_at(due, self._token)


async def serve(port: int, schedule: Schedule) -> None:
    """Serve for ever."""
    loop = asyncio.get_running_loop()
    counters = Seen(loop.time)
    server = await loop.create_server(
        lambda: Connection(schedule, counters, loop.call_at), "127.0.0.1", port, backlog=8192
    )
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=31000)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--tpot-ms", type=float, default=30.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    schedule = Schedule(options.ttft_ms / 1e3, options.tpot_ms / 1e3, options.jitter_ms / 1e3, options.seed)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(options.port, schedule))
    else:
        uvloop.run(serve(options.port, schedule))


if __name__ == "__main__":
    main()
