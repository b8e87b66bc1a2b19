"""What the emulated server answers to each request, in SGLang's words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tuner.emulator import family
from tuner.emulator.driver import ANSWER_ID, Driver, ServedRequest
from tuner.emulator.state import loads_document, server_document
from tuner.engines.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tuner.emulator.api_server import ApiServer
    from tuner.emulator.metrics import Exposition
    from tuner.emulator.role_metrics import RoleMetrics
    from tuner.emulator.roles import Meeting

# A prompt this short never fills the activations a full prefill needs.
SMALL_PROMPT = 64
DEFAULT_OUTPUT = 128
CHARACTERS_PER_TOKEN = 4
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus's text format
DONE = b"data: [DONE]\n\n"


class Answers:
    """The handlers; faults of the phase `serving` happen here."""

    def __init__(
        self, api: ApiServer, driver: Driver, shown: Exposition | None, role: RoleMetrics | None = None
    ) -> None:
        self._asked, self._driver, self.shown, self._role = api, driver, shown, role
        self.ready = False
        self._requests = 0

    # -- faults ------------------------------------------------------------------------------------------------

    def _due(self, kind: FaultKind) -> Fault | None:
        faults = self._asked.faults
        return next((fault for fault in faults if fault.kind is kind and self._requests > fault.requests), None)

    def fails_now(self) -> bool:
        """Count a request and let the faults that are due happen; say whether this one gets HTTP 500."""
        self._requests += 1
        if self._due(FaultKind.EXIT) is not None:
            os._exit(1)
        if self._due(FaultKind.FREEZE) is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._due(FaultKind.KILL_SCHEDULER) is not None:
            os.kill(self._asked.children[0], signal.SIGKILL)
        self._driver.mute = self._due(FaultKind.MUTE) is not None
        slow = self._due(FaultKind.SLOW)
        self._driver.slower = slow.factor if slow else 1.0
        oom = self._due(FaultKind.OOM)
        if oom is not None and len(self._driver.live) + 1 >= oom.count:
            self._out_of_memory()
        errors = self._due(FaultKind.ERRORS)
        return errors is not None and self._requests % errors.count == 0

    def _out_of_memory(self) -> None:
        family.die_of_scheduler("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")

    # -- state -------------------------------------------------------------------------------------------------

    async def is_ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)

    async def model_info(self, request: web.Request) -> web.Response:
        return web.json_response({"model_path": self._argument("model_path"), "is_generation": True,
                                  "served_model_name": self._name(), "model_type": "deepseek_v3"})  # fmt: skip

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": self._name(), "object": "model", "max_model_len": self._asked.config.context_length}
        return web.json_response({"object": "list", "data": [model]})

    async def server_info(self, request: web.Request) -> web.Response:
        return web.json_response(server_document(self._asked, self._name()))

    async def loads(self, request: web.Request) -> web.Response:
        return web.json_response(loads_document(self._asked, self._driver.server, self._role))

    async def metrics(self, request: web.Request) -> web.Response:
        text = self.shown.text() if self.shown is not None else b""
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def flush_cache(self, request: web.Request) -> web.Response:
        flushed = self._driver.flush()
        return web.Response(status=200 if flushed else 400, text="Cache flushed.\n" if flushed else "busy\n")

    async def abort(self, request: web.Request) -> web.Response:
        for live in list(self._driver.live.values()):
            self._driver.abort(live)
        return web.Response()

    def _argument(self, name: str) -> Any:
        return self._asked.arguments.get(name)

    def _name(self) -> str:
        return str(self._argument("served_model_name") or self._argument("model_path"))

    # -- generation --------------------------------------------------------------------------------------------

    def _meeting(self, body: dict[str, Any]) -> Meeting | None:
        """Return where the other half of a request is, None on a server of both phases. Raises HTTPBadRequest."""
        played = self._asked.played
        if played is None:
            return None
        meeting = played.meeting_of(body)
        if meeting is None:
            text = "Invalid request: Disaggregated request received without bootstrap room id."
            raise web.HTTPBadRequest(
                text=json.dumps({"error": {"message": text}}), content_type="application/json"
            )  # fmt: skip
        return meeting

    def _submit(
        self, prompt: tuple[int, ...] | int, osl: int, came_s: float, body: dict[str, Any]
    ) -> ServedRequest:  # fmt: skip
        meeting = self._meeting(body)
        isl = prompt if isinstance(prompt, int) else len(prompt)
        if self._asked.oom_under_load and isl > SMALL_PROMPT:
            self._out_of_memory()
        short = self._due(FaultKind.SHORT)
        tokens = max(1, osl - (short.count if short else 0))
        if self._role is not None and self._role.prefills:
            tokens = 1
        return self._driver.submit(prompt, tokens, came_s, streaming=bool(body.get("stream")), meeting=meeting)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer SGLang's own endpoint."""
        came_s = self._driver.now()
        body = await request.json()
        ids = body.get("input_ids")
        prompt = tuple(ids) if ids else max(1, len(body.get("text", "")) // CHARACTERS_PER_TOKEN)
        osl = int(body.get("sampling_params", {}).get("max_new_tokens", DEFAULT_OUTPUT))
        isl = prompt if isinstance(prompt, int) else len(prompt)
        longest = self._asked.config.context_length or 0
        if longest and isl + osl > longest:
            text = f"Requested token count exceeds the model's maximum context length of {longest} tokens."
            return web.json_response({"error": {"message": text}}, status=400)
        live = self._submit(prompt, osl, came_s, body)
        if body.get("stream"):
            return await self._stream(request, live, lambda: self._generated(live, isl))
        await self._finished(live)
        return _failed(live) or web.json_response(self._generated(live, isl))

    def _generated(self, live: ServedRequest, isl: int) -> dict[str, Any]:
        reason = None
        if live.done:
            reason = _abort(live) if live.aborted else {"type": "length", "length": live.tokens}
        meta = {"id": str(live.request.index), "prompt_tokens": isl, "completion_tokens": live.tokens,
                "cached_tokens": live.cached, "finish_reason": reason}  # fmt: skip
        return {"text": "", "output_ids": [ANSWER_ID] * live.tokens, "meta_info": meta}

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer the OpenAI endpoints; a prompt of text counts four characters a token."""
        came_s = self._driver.now()
        body = await request.json()
        chat = request.path.endswith("chat/completions")
        prompt = body.get("prompt") or json.dumps(body.get("messages", ""))
        prompt_tokens = tuple(prompt) if isinstance(prompt, list) else max(1, len(prompt) // CHARACTERS_PER_TOKEN)
        isl = prompt_tokens if isinstance(prompt_tokens, int) else len(prompt_tokens)
        osl = int(body.get("max_tokens") or body.get("max_completion_tokens") or DEFAULT_OUTPUT)
        live = self._submit(prompt_tokens, osl, came_s, body)
        sent_tokens = 0

        def chunk() -> dict[str, Any]:
            nonlocal sent_tokens
            text, sent_tokens = "a " * (live.tokens - sent_tokens), live.tokens
            reason = None if not live.done else "abort" if live.aborted else "length"
            part: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": isl, "completion_tokens": live.tokens,
                     "prompt_tokens_details": {"cached_tokens": live.cached}}  # fmt: skip
            choice = {"index": 0, "finish_reason": reason, **part}
            return {"id": "1", "created": int(time.time()), "model": self._name(), "choices": [choice], "usage": usage}

        if body.get("stream"):
            return await self._stream(request, live, chunk)
        await self._finished(live)
        if (failed := _failed(live)) is not None:
            return failed
        answer = chunk()
        if chat:
            answer["choices"][0]["message"] = {"role": "assistant", **answer["choices"][0].pop("delta")}
        return web.json_response(answer)

    async def _stream(self, request: web.Request, live: ServedRequest, chunk: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        interval = self._asked.config.stream_interval or 1
        sent = 0
        try:
            while not live.done or sent == 0:
                await live.news.wait()
                live.news.clear()
                if live.done or sent == 0 or live.tokens - sent >= interval:
                    sent = live.tokens or 1
                    await response.write(b"data: " + json.dumps(chunk()).encode() + b"\n\n")
            await response.write(DONE)
        except (asyncio.CancelledError, ConnectionError):
            self._driver.abort(live)
            raise
        return response

    async def _finished(self, live: ServedRequest) -> None:
        try:
            while not live.done:
                await live.news.wait()
                live.news.clear()
        except asyncio.CancelledError:
            self._driver.abort(live)
            raise


def _abort(live: ServedRequest) -> dict[str, Any]:
    """Return the finish reason of a request that was aborted: by its client, or for a failure here."""
    return {"type": "abort", "message": live.failure, "status_code": 500} if live.failure else {"type": "abort"}


def _failed(live: ServedRequest) -> web.Response | None:
    """Return the answer to a request that failed here, None where it did not."""
    return web.json_response({"detail": live.failure}, status=500) if live.failure else None
