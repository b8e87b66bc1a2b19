"""`python -m tuner.bench.worker`: one process of the load generator.

Reads its Share as one line on stdin, prints StreamProgress lines, and writes its RequestOutcome to the file that the
Share names when stdin says `stop`. The end of stdin is the parent's death: it exits at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import ssl
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from hwprobe.plain_text import one_line
from tuner.bench.http_stream import Stream, Tally
from tuner.bench.requests import Payloads, RequestOutcome, Seen, Share, StreamProgress
from tuner.choices import Backend
from tuner.server.ask import count, mapping

PROGRESS_S = 0.25
TICK_S = 0.01
RECONNECT_S = 0.2
MOST_RECONNECTS = 50
# Connections opened at once: a listen queue of a server holds 128 by default.
OPENING = 64
CPU_S = 0.5
CONNECT_S = 10.0
LONGEST_ERROR = 400
# A server that goes on after so many times the tokens asked for (and some) will never end.
MOST_OVER, SPARE_TOKENS = 2, 64


class Worker:
    """Sends a Share's requests over as many connections as it takes."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._payloads = Payloads(share)
        self._tally = Tally()
        self._seen: list[Seen] = []
        self._streams: dict[Stream, tuple[int, float]] = {}
        self._idle: list[Stream] = []
        self._opening = asyncio.Semaphore(OPENING)
        self._next = 0
        self._errors = 0
        self._due = sum(arrival <= share.due_s for arrival in share.arrivals_s)
        self._broken = ""
        self._lags: list[tuple[float, float]] = []
        self._cpu: list[tuple[float, float]] = []
        self._gap_s = self._suspended_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # -- sending -----------------------------------------------------------------------------------------------

    async def _open(self) -> Stream | None:
        share = self._share
        context = ssl.create_default_context() if share.secure else None
        loop = asyncio.get_running_loop()
        why = ""
        for _ in range(MOST_RECONNECTS):
            try:
                async with self._opening:
                    opening = loop.create_connection(
                        lambda: Stream(self._tally, self._finished), share.host, share.port, ssl=context
                    )
                    _, stream = await asyncio.wait_for(opening, CONNECT_S)
                return stream
            except (OSError, ValueError) as error:  # TimeoutError is an OSError, a certificate's fault a ValueError
                why = one_line(str(error), LONGEST_ERROR)
                if isinstance(error, OSError) and error.errno == errno.EMFILE:
                    self._broken = "too many open files: raise the limit with `ulimit -n`"
                    return None
                await asyncio.sleep(RECONNECT_S)
        self._broken = f"cannot connect to {share.host}:{share.port}: {why}"
        return None

    def _send(self, stream: Stream, index: int, planned: float, payload: bytes) -> None:
        if not self._streams:
            self._tally.last_event = time.monotonic()  # an idle server was not silent
        self._streams[stream] = (index, planned)
        stream.send(payload, most_tokens=MOST_OVER * self._payloads.lengths(index)[1] + SPARE_TOKENS)

    def _finished(self, stream: Stream) -> None:
        index, planned = self._streams.pop(stream)
        self._due -= planned <= self._share.start + self._share.due_s
        now = time.monotonic()
        error = stream.error or ("" if stream.tokens else f"no tokens: {stream.final[:200].decode(errors='replace')}")
        error = one_line(error, LONGEST_ERROR)
        self._errors += bool(error)
        self._seen.append(self._record(stream, index, planned, now, error))
        self._after(stream, failed=bool(error))

    def _record(self, stream: Stream, index: int, planned: float, now: float, error: str) -> Seen:
        isl, osl = self._payloads.lengths(index)
        prompt, tokens, cached = closing_figures(self._share.backend, stream.final, stream.tokens)
        times = (planned, stream.sent, stream.first, stream.last, now)
        return Seen(index, *times, isl, osl, prompt, tokens, cached, stream.chunks, error)

    def _after(self, stream: Stream, *, failed: bool) -> None:
        if self._share.arrivals_s:
            if not stream.closed:
                self._idle.append(stream)
        elif stream.closed or failed:
            self._spawn(self._client(pause_s=RECONNECT_S if failed else 0.0, old=None if stream.closed else stream))
        else:
            self._go_on(stream)

    def _go_on(self, stream: Stream) -> None:
        index, self._next = self._next, self._next + 1
        self._send(stream, index, time.monotonic(), self._payloads.request(index))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _client(self, *, pause_s: float = 0.0, old: Stream | None = None) -> None:
        """Start a closed-loop client, or let it go on after a failure."""
        await asyncio.sleep(pause_s)
        stream = old or await self._open()
        if stream is not None:
            self._go_on(stream)

    async def _arrivals(self) -> None:
        """Send at the planned times, whatever is still in flight."""
        for offset in self._share.arrivals_s:
            index, self._next = self._next, self._next + 1
            payload = self._payloads.request(index)
            planned = self._share.start + offset
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            self._spawn(self._one(index, planned, payload))

    async def _one(self, index: int, planned: float, payload: bytes) -> None:
        stream = None
        while self._idle and stream is None:
            candidate = self._idle.pop()
            stream = None if candidate.closed else candidate
        stream = stream or await self._open()
        if stream is not None:
            self._send(stream, index, planned, payload)

    # -- watching ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Measure how late the loop is, whether the machine slept, and this process's share of a core."""
        before, reported = time.monotonic(), 0.0
        booted = time.clock_gettime(time.CLOCK_BOOTTIME) - before
        cpu_at, cpu = before, time.process_time()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._lags.append((now, now - before - TICK_S))
            self._gap_s = max(self._gap_s, now - before)
            self._suspended_s = max(self._suspended_s, time.clock_gettime(time.CLOCK_BOOTTIME) - now - booted)
            before = now
            if now - cpu_at >= CPU_S:
                spent = time.process_time()
                self._cpu.append((now, (spent - cpu) / (now - cpu_at)))
                cpu_at, cpu = now, spent
            if now - reported >= PROGRESS_S:
                reported = now
                self._report(now)

    def _report(self, now: float) -> None:
        word = StreamProgress(
            done=len(self._seen),
            errors=self._errors,
            in_flight=len(self._streams),
            tokens=sum(self._tally.tokens_by_bin.values()),
            silent_s=now - self._tally.last_event,
            exhausted=self._due <= 0,
            broken=self._broken,
        )
        sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
        sys.stdout.buffer.flush()

    async def run(self) -> None:
        """Send until stdin says stop."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        ticking = asyncio.ensure_future(self._tick())
        if self._share.arrivals_s:
            self._spawn(self._arrivals())
        else:
            await asyncio.sleep(max(0.0, self._share.start - time.monotonic()))
            for _ in range(self._share.clients):
                self._spawn(self._client())
        word = await reader.readline()
        ticking.cancel()
        unfinished = [(planned, stream.sent) for stream, (_, planned) in self._streams.items()]
        for stream in [*self._streams, *self._idle]:
            stream.close()
        if word:
            self._write(unfinished)

    def _write(self, unfinished: list[tuple[float, float]]) -> None:
        outcome = RequestOutcome(
            seen=self._seen,
            unfinished=unfinished,
            tokens_by_bin=self._tally.tokens_by_bin,
            gaps_s=self._tally.gaps_s.tolist(),
            gap_marks=self._tally.gap_marks,
            lags_s=self._lags,
            cpu=self._cpu,
            longest_gap_s=self._gap_s,
            suspended_s=self._suspended_s,
        )
        Path(self._share.result).write_bytes(msgspec.msgpack.encode(outcome))


def closing_figures(backend: Backend, final: bytes, counted: int) -> tuple[int, int, int]:
    """Return prompt tokens, output tokens and cached tokens as the last event states them; 0 where it does not.

    Output tokens that are not stated, or as no number, are those that were counted.
    """
    _, _, text = final.partition(b"data:")
    try:
        answer = mapping(msgspec.json.decode(text)) if text.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0, counted, 0
    usage = mapping(answer.get("meta_info" if backend is Backend.SGLANG else "usage"))
    cached = usage if backend is Backend.SGLANG else mapping(usage.get("prompt_tokens_details"))
    tokens = count(usage.get("completion_tokens"))
    if tokens is None:
        tokens = 0 if backend is Backend.SGLANG and "completion_tokens" not in usage and not counted else counted
    return count(usage.get("prompt_tokens")) or 0, tokens, count(cached.get("cached_tokens")) or 0


def allow_files(needed: int) -> int:
    """Raise the soft limit of open files as far as needed and allowed; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _first_line() -> bytes:
    """Read the Share; the next line comes only when it is time to stop, so nothing of it is taken along."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 20)
        if not data:
            sys.exit(0)
        line += data
    return line


def main(kind: type[Worker] = Worker) -> int:
    """Run a worker of this kind until its parent says stop."""
    share = msgspec.json.decode(_first_line(), type=Share)
    allow_files(share.clients + len(share.arrivals_s) + 64)
    gc.freeze()
    gc.set_threshold(100_000)
    asyncio.run(kind(share).run())
    sys.stdout.flush()
    os._exit(0)  # nothing left to tidy that a socket's close would not


if __name__ == "__main__":
    sys.exit(main())
