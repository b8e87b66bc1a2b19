"""SGLang's HTTP API over the driver, from the bound port to the end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from packaging.version import Version

from models.config import ServerConfig
from models.serving.scheduler import Limits
from tuner.emulator import family
from tuner.emulator.answers import Answers
from tuner.emulator.doors import open_door
from tuner.emulator.driver import Driver, Habits
from tuner.emulator.log import say
from tuner.emulator.recorder import CountedTimes, Exposed, Recorder
from tuner.emulator.role_metrics import RoleMetrics
from tuner.emulator.roles import RolePlayed, keeps_prefixes
from tuner.engines.faults import Fault

if TYPE_CHECKING:
    from tuner.emulator.metrics import Exposition

HOST, PORT = "127.0.0.1", 30000
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """Everything the HTTP side needs to know; `boot_s` is the world's, `started` a monotonic time.

    `leave` tells the other ranks of the server, where there are some, that this one ends; `played` is None for a server
    of both phases.
    """

    times: CountedTimes
    limits: Limits
    played: RolePlayed | None
    observed: Exposed
    config: ServerConfig
    arguments: dict[str, Any]
    typed: tuple[str, ...]
    version: str
    device: str
    kv_tokens_per_rank: int
    noise: float
    seed: int
    oom_under_load: bool
    faults: tuple[Fault, ...]
    warm_up: Callable[[], None]
    boot_s: float
    started: float
    children: tuple[int, ...]
    leave: Callable[[], None]


def serve(api: ApiServer) -> int:
    """Serve until SIGTERM has been drained; return the exit code."""
    return asyncio.run(_serve(api))


async def _serve(api: ApiServer) -> int:
    shown = exposition(api)
    role = role_metrics(api, shown)
    recorder = Recorder(shown, api.observed, api.times, role) if shown is not None else None
    driver = Driver(api.times, api.limits, habits_of(api), recorder=recorder)
    answers = Answers(api, driver, shown if api.arguments.get("enable_metrics") else None, role)
    runner = web.AppRunner(application(answers), access_log=None, handler_cancellation=True)
    await runner.setup()
    host, port = address_of(api.arguments)
    say("INFO:     Application startup complete.")
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
        close_door = await open_door(driver, api.played, role, host)
    except OSError as error:
        text = "address already in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        say(f"ERROR:    [Errno {error.errno}] error while attempting to bind on address ('{host}', {port}): {text}")
        return 1
    say(f"INFO:     Uvicorn running on http://{host}:{port} (Press CTRL+C to quit)")
    await asyncio.to_thread(api.warm_up)
    answers.ready = True
    stopping = asyncio.Event()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    watched = [_watch(pid) for pid in api.children]
    say("The server is fired up and ready to roll!")
    running = asyncio.ensure_future(driver.run())
    await stopping.wait()
    for handle in watched:
        asyncio.get_running_loop().remove_reader(handle)
    say("SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
    while driver.live:
        await asyncio.sleep(POLL_S)
    say("Gracefully exiting... Remaining number of requests 0.")
    running.cancel()
    await close_door()
    await runner.cleanup()
    api.leave()
    return 0


def address_of(arguments: dict[str, Any]) -> tuple[str, int]:
    """Return where SGLang's arguments say that a server listens."""
    return str(arguments.get("host", HOST)), int(arguments.get("port", PORT))


def habits_of(api: ApiServer) -> Habits:
    """Return how this server works beside its times and limits."""
    return Habits(
        noise=api.noise,
        seed=api.seed,
        radix=keeps_prefixes(api.config),
        recv_interval=api.config.scheduler_recv_interval or 1,
        page=api.config.page_size or 1,
    )


def exposition(api: ApiServer) -> Exposition | None:
    """Return what /metrics shows; None without --enable-metrics, unless the log says some of it."""
    if not api.arguments.get("enable_metrics") and api.played is None:
        return None
    from tuner.emulator.metrics import Exposition  # prometheus_client costs a start 0.1 s

    name = str(api.arguments.get("served_model_name") or api.arguments.get("model_path"))
    role = "unified" if api.played is None else str(api.played.role)
    return Exposition(Version(api.version), model_name=name, pid=os.getpid(), engine_type=role)


def role_metrics(api: ApiServer, shown: Exposition | None) -> RoleMetrics | None:
    """Return what a server of one phase says of its queues, None for one of both."""
    if api.played is None or shown is None:
        return None
    return RoleMetrics(role=api.played.role, observed=api.observed, shown=shown)


def _watch(pid: int) -> int:
    """Die, as SGLang does, when this child does."""
    handle = os.pidfd_open(pid)

    def gone() -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        family.die_of_lost_child(pid, code)

    asyncio.get_running_loop().add_reader(handle, gone)
    return handle


def application(answers: Answers) -> web.Application:
    """Return the routes SGLang has and a load generator or a supervisor may call."""

    @web.middleware
    async def faults(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> web.StreamResponse:
        if request.method == "POST" and request.path in GENERATING and answers.fails_now():
            return web.json_response({"error": {"message": "Internal Server Error"}}, status=500)
        return await handler(request)  # type: ignore[no-any-return]

    app = web.Application(middlewares=[faults], client_max_size=1 << 28)
    for path in ("/health", "/health_generate"):
        app.router.add_get(path, answers.health)
    app.router.add_get("/ready", answers.is_ready)
    for path in ("/model_info", "/get_model_info"):
        app.router.add_get(path, answers.model_info)
    for path in ("/server_info", "/get_server_info"):
        app.router.add_get(path, answers.server_info)
    app.router.add_get("/v1/models", answers.models)
    app.router.add_get("/v1/loads", answers.loads)
    if answers.shown is not None:
        app.router.add_get("/metrics", answers.metrics)
    app.router.add_route("*", "/flush_cache", answers.flush_cache)
    app.router.add_post("/abort_request", answers.abort)
    app.router.add_post("/generate", answers.generate)
    app.router.add_post("/v1/completions", answers.completions)
    app.router.add_post("/v1/chat/completions", answers.completions)
    return app


GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions")
