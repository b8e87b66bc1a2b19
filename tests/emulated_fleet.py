"""Emulated prefill and decode servers behind SGLang's own router, and what the replay says of them."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.config import ServerConfig
from models.serving.estimate import Context
from models.serving.fleet_replay import FleetLoad, FleetModel, FleetReplay, replay_fleet, transfer_of
from models.serving.role_times import prefill_role
from models.version import NEWEST
from planner.check.judge import check_arguments, modelled
from planner.fleets.role_servers import decode_server, role_server
from planner.inputs import read_question
from tuner.engines.build import world_toml
from tuner.engines.world import World
from tuner.server.ports import Ports
from tuner.server.process import ServerProcess

READY_S = 120.0


@dataclass(frozen=True)
class Fleet:
    """A started fleet: the URLs of its router and servers, their processes and commands by name ("prefill-0")."""

    router: str
    urls: dict[str, str]
    processes: dict[str, ServerProcess]
    commands: dict[str, list[str]]
    folder: Path
    stack: ExitStack

    def start(self, name: str, folder: str) -> None:
        """Start a process of the fleet; its files go to a folder of this name."""
        self.processes[name] = ServerProcess(self.commands[name], self.folder / folder, {})
        self.stack.callback(self.processes[name].stop)

    def log(self, name: str) -> str:
        """Return what a server has printed."""
        return (self.folder / name / "server.log").read_text()


@contextmanager
def emulated_fleet(
    folder: Path,
    *,
    prefill: Sequence[str] = ("--tp-size 8",),
    decode: Sequence[str] = ("--tp-size 8",),
    world: World | None = None,
    router: Sequence[str] = (),
    hardware: str = "h200x8",
) -> Iterator[Fleet]:
    """Start a server for each line of flags, and the router; wait until the router has found them all."""
    (folder / "world.toml").write_text(world_toml(world or World(name="even", boot_s=0.5, noise=0.0)))
    ports, pairs = Ports(), []
    with ExitStack() as stack:
        port, own = ports.next(), ports.next()
        fleet = Fleet(f"http://127.0.0.1:{port}", {}, {}, {}, folder, stack)
        for role, lines in (("prefill", prefill), ("decode", decode)):
            for index, line in enumerate(lines):
                name, own_port, bootstrap = f"{role}-{index}", ports.next(), str(ports.next())
                fleet.urls[name] = f"http://127.0.0.1:{own_port}"
                words = [sys.executable, "-m", "tuner.emulator", "--hardware", hardware, "--server", name,
                         "--world", str(folder / "world.toml"), "--", "--model-path", "r1", *line.split(),
                         "--port", str(own_port), "--enable-metrics", "--disaggregation-mode", role]  # fmt: skip
                words += ["--disaggregation-bootstrap-port", bootstrap] if role == "prefill" else []
                pairs += [f"--{role}", fleet.urls[name], *([bootstrap] if role == "prefill" else [])]
                fleet.commands[name] = words
        options = ["--policy", "round_robin", "--port", str(port), "--prometheus-port", str(own),
                   "--log-level", "warn", *router]  # fmt: skip
        fleet.commands["router"] = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation", *pairs,
                                    *options]  # fmt: skip
        for name in fleet.commands:
            fleet.start(name, name)
        wait_until_ready(fleet.router, len(fleet.urls))
        yield fleet


def start_again(fleet: Fleet, name: str) -> float:
    """Start a process that was killed; return the seconds until it is healthy."""
    began_s = time.monotonic()
    fleet.start(name, f"{name}-again")
    url = fleet.urls.get(name, fleet.router) + ("/health" if name in fleet.urls else "/readiness")
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return time.monotonic() - began_s
        except OSError:
            if time.monotonic() > began_s + READY_S:
                raise
        time.sleep(0.1)


def wait_until_ready(router: str, workers: int) -> None:
    """Wait until the router has found so many healthy servers."""
    until = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(f"{router}/readiness", timeout=5) as response:
                if json.load(response)["healthy_workers"] == workers:
                    return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def held_back_ms(fleet: Fleet) -> float:
    """Return how long the router holds a first token back from a client that keeps its connection, in ms.

    `sglang-router` 0.3.2 leaves Nagle's algorithm on: it sends the head of an answer, and the first token only when
    the head has been acknowledged, which a client's kernel puts off (40 ms on Linux) unless it is told not to.
    """
    connection = http.client.HTTPConnection(fleet.router.removeprefix("http://"))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(11):
        body = {"text": "x" * 40, "sampling_params": {"max_new_tokens": 2}, "stream": True}
        began_s = time.monotonic()
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        if turn % 2:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        with connection.getresponse() as response:
            response.readline()
            seconds[bool(turn % 2)].append(time.monotonic() - began_s)
            response.read()
    connection.close()
    return 1e3 * (statistics.median(seconds[False]) - statistics.median(seconds[True]))


def believed(
    prefill: Sequence[str], decode: Sequence[str], load: FleetLoad, *, hardware: str = "h200x8"
) -> FleetReplay:
    """Return the replay's prediction of a fleet: the flags of each server, all of one role alike.

    The first and the last fifth of the requests are not in the result.
    """
    context = read_question(
        hardware=hardware, model=None, sglang_version=NEWEST, slo=None, profile=None, isl=1, osl=1, concurrency=1
    ).context()
    first, then = (_config(context, line, role) for role, line in (("prefill", prefill[0]), ("decode", decode[0])))
    taking = role_server(context, first, batch=1)
    model = FleetModel(
        prefill=prefill_role(taking.model, first, context),
        prefill_servers=len(prefill),
        decode=decode_server(context, then, batch=load.concurrency).model,
        decode_servers=len(decode),
        transfer=transfer_of(context),
    )
    count = len(load.isl)
    return replay_fleet(model, load, measure_from=count // 5, measure_to=count - count // 5)


def _config(context: Context, line: str, role: str) -> ServerConfig:
    words = ["--model-path", "r1", *line.split(), "--disaggregation-mode", role]
    return modelled(check_arguments(words, context.arch, context.machine, context.version).resolved.config)
