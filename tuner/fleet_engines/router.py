"""SGLang's router before the servers of a deployment: its command, and waiting until a request comes through it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from planner.fleets.deployment import DEFAULT_POLICY, RECOVERY_FLAGS, Role
from planner.launch_files.fleet import ROUTER_RELEASE
from tuner.seam import FailureKind, LaunchFailed
from tuner.server.ask import NO_ANSWER, HttpRequest, ask, count, json_answer, mapping
from tuner.server.process import Launch, ServerProcess
from tuner.server.readiness import check_output

HOST = "127.0.0.1"
ROUTER = "router"
# A router counts a server as healthy once it has answered; until then it refuses requests.
READY_S = 120.0
POLL_S = 0.2
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """A server as the router knows it."""

    role: Role
    port: int
    bootstrap_port: int = 0

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPorts:
    """The port that clients speak to, and the one of the router's own metrics."""

    serving: int
    metrics: int


def check_router() -> None:
    """Raise InputError where this environment has no router."""
    if find_spec("sglang_router") is None:
        raise InputError(f"deployments need SGLang's router: pip install sglang-router=={ROUTER_RELEASE}")


def router_words(python: str, servers: Sequence[Routed], ports: RouterPorts) -> list[str]:
    """Return the command of the router before these servers."""
    mixed = [server.url for server in servers if server.role is Role.MIXED]
    words = [python, "-m", "sglang_router.launch_router"]
    words += ["--worker-urls", *mixed] if mixed else ["--pd-disaggregation"]
    for server in servers:
        if server.role is Role.PREFILL:
            words += ["--prefill", server.url, str(server.bootstrap_port)]
        elif server.role is Role.DECODE:
            words += ["--decode", server.url]
    recovery = [word for flag in RECOVERY_FLAGS for word in flag]
    # one line a request would be most of its work
    return [*words, "--policy", DEFAULT_POLICY, *recovery, "--host", HOST, "--port", str(ports.serving),
            "--prometheus-port", str(ports.metrics), "--log-level", "warn"]  # fmt: skip


def start_router(words: Sequence[str], folder: Path, run: str) -> ServerProcess:
    """Start the router. Raises LaunchFailed where it cannot be started."""
    try:
        return ServerProcess(words, folder, {}, launch=Launch(name=ROUTER, run=run))
    except (OSError, ValueError) as error:
        raise LaunchFailed(FailureKind.SUPERVISOR, f"the router did not start: {error}", 0.0) from error


def wait_for_router(process: ServerProcess, port: int, servers: int, alive: Callable[[], None]) -> None:
    """Wait until the router has found all servers, and one request has come through it.

    `alive` raises LaunchFailed where a server or the router has ended.
    """
    began_s = time.monotonic()
    while (healthy := _healthy(port)) < servers:
        alive()
        waited_s = time.monotonic() - began_s
        if waited_s > READY_S:
            evidence = f"the router found {max(0, healthy)} of {servers} servers within {READY_S:.0f} s"
            last = "\n".join(process.log_text().splitlines()[-20:])
            raise LaunchFailed(FailureKind.LAUNCH_TIMEOUT, f"{evidence}\n{last}", waited_s)
        time.sleep(POLL_S)
    try:
        check_output(process, port)
    except LaunchFailed:
        alive()  # a server that the first request ended says why
        raise


def _healthy(port: int) -> int:
    """Return how many servers the router has found healthy, -1 while it does not answer."""
    try:
        status, answer = ask(HttpRequest(host=HOST, port=port, method="GET", path="/readiness"), ANSWER_S)
        document: dict[str, Any] = mapping(json_answer(answer))
    except NO_ANSWER:
        return -1
    return (count(document.get("healthy_workers")) or 0) if status == http.client.OK else 0
