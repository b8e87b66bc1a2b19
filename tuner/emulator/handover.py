"""The KV cache of a request on its way from a prefill to a decode server, in SGLang's order.

A decode server allocates memory for a request and asks the bootstrap endpoint of its prefill server for it; only then
does the prefill server run the prompt. The cache takes its time to be sent; then the decode server's request enters its
batch. Between emulated servers one HTTP request, answered when all is sent, stands for handshake and transfer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

from models.serving.scheduler import CLIPPED_NEW_TOKENS
from tuner.emulator.driver import Driver, ServedRequest
from tuner.emulator.log import say
from tuner.emulator.role_metrics import RoleMetrics
from tuner.emulator.roles import Meeting, RolePlayed, Sending, copies_sent

# SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT and _WAITING_TIMEOUT.
WAITING_S = 300.0
# A decode server asks for a prefill server's layout once a second, so often (disaggregation/decode.py).
ATTEMPTS, ATTEMPT_S = 15, 1.0
# A prefill server is lost when it misses so many heartbeats (SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL, _MAX_FAILURE).
HEARTBEAT_S, HEARTBEATS = 5.0, 2


@dataclass(slots=True)
class Tasks:
    """What is under way for requests, by the index of each."""

    running: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, live: ServedRequest, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of a request."""
        self.running[live.request.index] = asyncio.ensure_future(work)

    def stop(self, live: ServedRequest) -> None:
        """Stop it, unless it is what stops."""
        task = self.running.pop(live.request.index, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()


@dataclass(slots=True)
class MeetingRoom:
    """Where a prefill and a decode server meet over one request."""

    wanted: asyncio.Future[int]  # the decode server has allocated memory, and has so many ranks that need a copy
    sent: asyncio.Future[Sending]


class PrefillDoor:
    """Lets prompts in when their decode server is ready for them, and sends their KV caches."""

    def __init__(self, driver: Driver, played: RolePlayed, shown: RoleMetrics) -> None:
        self._driver, self._played, self._shown = driver, played, shown
        self._rooms: dict[int, MeetingRoom] = {}
        self._tasks = Tasks()
        self._prefilled: dict[int, asyncio.Future[float]] = {}

    def came(self, live: ServedRequest) -> None:
        """A prompt has come."""
        self._tasks.start(live, self._serve(live))

    def served(self, live: ServedRequest) -> bool:
        """A prompt has been prefilled: it keeps its slot until its cache has been sent."""
        self._driver.server.held += 1
        self._shown.inflight.add(live.request.index)
        self._prefilled[live.request.index].set_result(self._driver.server.now_s)
        return True

    def gone(self, live: ServedRequest) -> None:
        """Forget a request; its decode server hears of it where it still waits."""
        index = live.request.index
        self._tasks.stop(live)
        self._prefilled.pop(index, None)
        self._shown.bootstrapping.discard(index)
        self._free(index)
        room = self._rooms.pop(live.meeting.room, None) if live.meeting is not None else None
        if room is not None and not room.sent.done():
            room.sent.cancel()
        self._shown.refresh()

    def _free(self, index: int) -> None:
        """Give a request's slot to others, once its KV cache has been sent or never will be."""
        if index in self._shown.inflight:
            self._shown.inflight.discard(index)
            self._driver.release_slot()

    async def _serve(self, live: ServedRequest) -> None:
        meeting, index = live.meeting, live.request.index
        assert meeting is not None
        prefilled = self._prefilled[index] = asyncio.get_running_loop().create_future()
        fake = self._played.is_fake(meeting)
        room = self._room(meeting.room)
        copies = 1
        if not fake:
            came_s = self._driver.now()
            self._shown.bootstrapping.add(index)
            try:
                copies = await asyncio.wait_for(asyncio.shield(room.wanted), WAITING_S)
            except TimeoutError:
                self._fail(live, "bootstrap", f"Request {meeting.room} timed out after {WAITING_S:.1f}s")
                return
            self._shown.bootstrapping.discard(index)
            self._shown.met(self._driver.now() - came_s)
        self._driver.enter(live)
        began_s = await prefilled  # when the pass ended: the front end has no part in it
        if not fake:
            sending = self._played.sending(live.request.isl, copies)
            await asyncio.sleep(began_s + sending.seconds - self._driver.now())
            self._shown.sent(index, sending)
            if not room.sent.done():
                room.sent.set_result(sending)
        self._free(index)
        await asyncio.sleep(self._driver.server.times.front_end_s)  # its answer, which the router waits for
        self._driver.complete(live)

    def _fail(self, live: ServedRequest, stage: str, why: str) -> None:
        assert live.meeting is not None
        rid = str(live.request.index)
        text = (
            f"Prefill {stage} failed for request rank=0 req.rid={rid!r} req.bootstrap_room={live.meeting.room} "
            f"with exception KVTransferError(bootstrap_room={live.meeting.room}): {why}"
        )
        say(text)
        self._shown.failed(stage)
        self._driver.abort(live, text)

    def _room(self, number: int) -> MeetingRoom:
        if number not in self._rooms:
            loop = asyncio.get_running_loop()
            self._rooms[number] = MeetingRoom(loop.create_future(), loop.create_future())
        return self._rooms[number]

    # -- the bootstrap endpoint --------------------------------------------------------------------------------

    async def hand_over(self, request: web.Request) -> web.Response:
        """Answer a decode server when the KV cache of its request has been sent to it."""
        number = int(request.match_info["room"])
        room = self._room(number)
        if not room.wanted.done():
            room.wanted.set_result(copies_sent(self._played.attn_tp, int(request.query["attn_tp"])))
        try:
            await asyncio.wait_for(asyncio.shield(room.sent), WAITING_S)
        except TimeoutError:
            return web.json_response({"error": f"Request {number} timed out"}, status=504)
        except asyncio.CancelledError:
            if room.sent.cancelled():
                return web.json_response({"error": "Aborted by AbortReq."}, status=410)
            self._lost(number)
            raise
        return web.json_response({"room": number})

    def _lost(self, number: int) -> None:
        """The decode server of a room has gone."""
        self._rooms.pop(number, None)
        lives = self._driver.live.values()
        live = next((live for live in lives if live.meeting is not None and live.meeting.room == number), None)
        if live is not None:
            self._fail(live, "transfer", "Decode instance could be dead, remote mooncake session is not alive")

    def bootstrap_application(self) -> web.Application:
        """Return the bootstrap endpoint: its health, its layout, and the rooms."""

        async def health(request: web.Request) -> web.Response:
            return web.Response(text="OK")

        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_post("/rooms/{room}", self.hand_over)
        return app


class DecodeDoor:
    """Allocates memory for requests, first come first served, and lets them in when their KV caches have come."""

    def __init__(self, driver: Driver, played: RolePlayed, shown: RoleMetrics) -> None:
        self._driver, self._played, self._shown = driver, played, shown
        self._queue: deque[ServedRequest] = deque()
        self._allocated: dict[int, ServedRequest] = {}
        self._came_s: dict[int, float] = {}
        self._tasks = Tasks()
        self._session = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=WAITING_S))

    async def close(self) -> None:
        """Close the connections to prefill servers."""
        await self._session.close()

    def came(self, live: ServedRequest) -> None:
        """A request has come."""
        longest = self._driver.server.limits.kv_tokens
        if live.request.isl > longest:
            text = f"Request {live.request.index} exceeds the maximum number of tokens: {live.request.isl} > {longest}"
            say(text)
            self._driver.abort(live, text)
            return
        self._came_s[live.request.index] = self._driver.now()
        self._shown.preallocating.add(live.request.index)
        self._queue.append(live)
        self._allocate()

    def served(self, live: ServedRequest) -> bool:
        """Return False: a request ends with its answer."""
        return False

    def gone(self, live: ServedRequest) -> None:
        """Forget a request; what it held is for others."""
        index = live.request.index
        self._tasks.stop(live)
        if live in self._queue:
            self._queue.remove(live)
        self._allocated.pop(index, None)
        self._came_s.pop(index, None)
        self._shown.preallocating.discard(index)
        self._shown.coming.pop(index, None)
        self._allocate()
        self._shown.refresh()

    def _allocate(self) -> None:
        """Allocate memory for as many of the queue as there is room for."""
        while self._queue and self._fits(self._queue[0]):
            live = self._queue.popleft()
            index = live.request.index
            self._shown.preallocating.discard(index)
            self._shown.coming[index] = live.request.isl
            self._allocated[index] = live
            self._tasks.start(live, self._receive(live))

    def _fits(self, live: ServedRequest) -> bool:
        """Say whether SGLang would allocate a request's KV cache now (DecodePreallocQueue.pop_preallocated)."""
        server, reserved = self._driver.server, self._played.reserved_tokens
        active = len(self._allocated)
        if active >= server.limits.max_running + self._played.extra_slots:
            return False
        retractable = server.used
        coming = sum(other.request.prompt for index, other in self._allocated.items() if index not in server.running)
        free = server.limits.kv_tokens - retractable - coming - reserved * active
        isl, osl = live.request.isl, live.request.osl
        return free >= max(isl + reserved, isl + min(osl, CLIPPED_NEW_TOKENS) - retractable)

    async def _receive(self, live: ServedRequest) -> None:
        meeting, index = live.meeting, live.request.index
        assert meeting is not None
        self._shown.allocated(self._driver.now() - self._came_s.pop(index))
        if not self._played.is_fake(meeting):
            failure = await self._fetch(meeting)
            if failure:
                self._fail(live, failure)
                return
        self._shown.coming.pop(index, None)
        self._driver.enter(live)

    async def _fetch(self, meeting: Meeting) -> str:
        """Wait for a KV cache; return why it did not come, else nothing."""
        for _ in range(ATTEMPTS):
            try:
                return await self._asked(meeting)
            except ConnectionRefusedError:
                await asyncio.sleep(ATTEMPT_S)
        return f"Could not fetch prefill parallel info from {meeting.address} after {ATTEMPTS} attempts"

    async def _asked(self, meeting: Meeting) -> str:
        url = f"http://{meeting.address}/rooms/{meeting.room}?attn_tp={self._played.attn_tp}"
        try:
            async with self._session.post(url) as answer:
                return "" if answer.status == 200 else str((await answer.json())["error"])
        except (ClientError, TimeoutError) as error:
            refused = getattr(error, "os_error", None)
            if isinstance(refused, ConnectionRefusedError):
                raise refused from error
            await asyncio.sleep(HEARTBEATS * HEARTBEAT_S)
            say(f"Lost connection with prefill instance (bootstrap_addr: {meeting.address}), 1 requests affected")
            return f"Lost connection with prefill instance (bootstrap_addr: {meeting.address})"

    def _fail(self, live: ServedRequest, why: str) -> None:
        assert live.meeting is not None
        rid, room = str(live.request.index), live.meeting.room
        text = (
            f"Decode transfer failed for request rank=0 decode_req.req.rid={rid!r} "
            f"decode_req.req.bootstrap_room={room} with exception KVTransferError(bootstrap_room={room}): {why}"
        )
        say(text)
        self._shown.failed("transfer")
        self._driver.abort(live, text)
