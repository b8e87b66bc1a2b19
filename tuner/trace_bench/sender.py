"""`python -m tuner.trace_bench.sender`: one process of the load generator under a trace.

Requests go at their times, a session's next turn after its answer.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tuner.bench.http_stream import Stream
from tuner.bench.requests import Share, TraceRequest
from tuner.bench.worker import Worker, main
from tuner.trace_bench.payloads import TracePayloads


class TraceWorker(Worker):
    """Sends the requests of its Share's trace, whatever is in flight; within a session one after the other."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._trace = TracePayloads(share)
        self._payloads = self._trace
        self._requests = {request.index: request for request in share.requests}
        self._following = {request.after: request for request in share.requests if request.after >= 0}
        self._due = len(share.requests)

    def _finished(self, stream: Stream) -> None:
        index, _ = self._streams[stream]
        final = stream.final
        super()._finished(stream)
        self._trace.learn(self._requests[index], final)
        following = self._following.get(index)
        if following is not None:
            self._spawn(self._later(following, time.monotonic() + following.think_s))

    async def _arrivals(self) -> None:
        first = [request for request in self._share.requests if request.after < 0]
        for request in sorted(first, key=lambda request: request.planned_s):
            await self._later(request, self._share.start + request.planned_s, wait=False)

    async def _later(self, request: TraceRequest, planned: float, *, wait: bool = True) -> None:
        """Send a request when it is time; without `wait` a slow connection does not keep the next one."""
        payload = self._payloads.request(request.index)
        await asyncio.sleep(max(0.0, planned - time.monotonic()))
        sending = self._one(request.index, planned, payload)
        if wait:
            await sending
        else:
            self._spawn(sending)


if __name__ == "__main__":
    sys.exit(main(TraceWorker))
