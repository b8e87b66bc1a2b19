"""A server of a known schedule: every stream gets its first token after TTFT and one more every TPOT, with jitter.

    python benchmarks/load_stub.py --port 31000 --ttft-ms 200 --tpot-ms 30 --jitter-ms 2

Speaks SGLang's streaming /generate and nothing else well. It is lean so that what a load generator measures against it
is the generator's own error; uvloop is used where it is installed.
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
OUTPUT = re.compile(rb'"max_(?:new_)?tokens": ?(\d+)')


def plain(body: bytes) -> bytes:
    """Return a whole answer with this JSON body."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Schedule:
    """The truth, and the bytes that tell it."""

    def __init__(self, ttft_s: float, tpot_s: float, jitter_s: float, seed: int) -> None:
        self.ttft_s, self.tpot_s, self.jitter_s = ttft_s, tpot_s, jitter_s
        self._random = random.Random(seed)
        self._events: dict[tuple[int, int, bool], bytes] = {}

    def event(self, prompt: int, number: int, last: bool) -> bytes:
        """Return the event of the `number`-th token as one HTTP chunk."""
        key = (prompt, number, last)
        found = self._events.get(key)
        if found is None:
            meta = {"id": "0", "prompt_tokens": prompt, "completion_tokens": number, "cached_tokens": 0,
                    "finish_reason": {"type": "length", "length": number} if last else None}  # fmt: skip
            text = b"data: " + json.dumps({"text": "", "output_ids": [7], "meta_info": meta}).encode() + b"\n\n"
            found = self._events[key] = b"%x\r\n%s\r\n" % (len(text), text)
        return found

    def jitter(self) -> float:
        """Return how much later than planned one token comes, in seconds (half-normal)."""
        return abs(self._random.gauss(0.0, self.jitter_s)) if self.jitter_s else 0.0


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, schedule: Schedule, call_at: Callable[..., asyncio.TimerHandle]) -> None:
        self._schedule, self._call_at = schedule, call_at
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not an instance of it

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = LENGTH.search(head)
        if length is not None and len(body) < int(length.group(1)):
            return
        self._buffer = b""
        path = head.split(b" ", 2)[1]
        if path == b"/generate":
            self._start(body)
        elif path in (b"/server_info", b"/v1/models"):
            self._transport.write(plain(b'{"served_model_name": "stub", "version": "0", "data": [{"id": "stub"}]}'))
        else:
            self._transport.write(plain(b"{}"))

    def _start(self, body: bytes) -> None:
        asked = OUTPUT.search(body)
        self._wanted = int(asked.group(1)) if asked else 16
        self._prompt = body.count(b",", 0, body.find(b"]")) + 1
        self._sent = 0
        self._first = self._loop.time() + self._schedule.ttft_s
        self._transport.write(HEAD)
        self._timer = self._call_at(self._first + self._schedule.jitter(), self._token)

    def _token(self) -> None:
        self._sent += 1
        last = self._sent == self._wanted
        event = self._schedule.event(self._prompt, self._sent, last)
        self._transport.write(event + TAIL if last else event)
        if not last:
            due = self._first + self._sent * self._schedule.tpot_s + self._schedule.jitter()
            self._timer = self._call_at(due, self._token)


async def serve(port: int, schedule: Schedule) -> None:
    """Serve for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(schedule, loop.call_at), "127.0.0.1", port, backlog=8192)
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
    asked = parser.parse_args()
    schedule = Schedule(asked.ttft_ms / 1e3, asked.tpot_ms / 1e3, asked.jitter_ms / 1e3, asked.seed)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(asked.port, schedule))
    else:
        uvloop.run(serve(asked.port, schedule))


if __name__ == "__main__":
    main()
