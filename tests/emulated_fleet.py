"""Emulated prefill and decode servers behind SGLang's own router, for tests and benchmarks."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuner.engines.build import world_toml
from tuner.engines.world import World
from tuner.server.ports import Ports
from tuner.server.process import ServerProcess

READY_S = 120.0


@dataclass(frozen=True)
class Fleet:
    """A started fleet: the URLs of its router and servers, and their processes by name ("prefill-0", "router")."""

    router: str
    urls: dict[str, str]
    processes: dict[str, ServerProcess]
    folder: Path

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
    ports, urls, processes, pairs = Ports(), {}, {}, []
    with ExitStack() as stack:
        for role, lines in (("prefill", prefill), ("decode", decode)):
            for index, line in enumerate(lines):
                name, port, bootstrap = f"{role}-{index}", ports.next(), str(ports.next())
                urls[name] = f"http://127.0.0.1:{port}"
                words = [sys.executable, "-m", "tuner.emulator", "--hardware", hardware, "--server", name,
                         "--world", str(folder / "world.toml"), "--", "--model-path", "r1", *line.split(),
                         "--port", str(port), "--enable-metrics", "--disaggregation-mode", role]  # fmt: skip
                words += ["--disaggregation-bootstrap-port", bootstrap] if role == "prefill" else []
                pairs += [f"--{role}", urls[name], *([bootstrap] if role == "prefill" else [])]
                processes[name] = ServerProcess(words, folder / name, {})
                stack.callback(processes[name].stop)
        port, own = ports.next(), ports.next()
        options = ["--policy", "round_robin", "--port", str(port), "--prometheus-port", str(own),
                   "--log-level", "warn", *router]  # fmt: skip
        command = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation", *pairs, *options]
        processes["router"] = ServerProcess(command, folder / "router", {})
        stack.callback(processes["router"].stop)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, len(urls))
        yield Fleet(url, urls, processes, folder)


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
