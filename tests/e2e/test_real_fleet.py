"""The real SGLang on a CPU as prefill and decode servers: a real KV transfer behind SGLang's own router."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.emulated_fleet import wait_until_ready
from tests.left import nothing_left
from tests.transfer import sglang_with_transfer
from tuner.server.ports import Ports
from tuner.server.process import ServerProcess

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, ROLE_FLAGS, Installed  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1800)]
READY_S = 600.0
FAKE = {"bootstrap_host": "2.2.2.2", "bootstrap_port": 8998, "bootstrap_room": 0}
# The router looks every minute at a server that has failed, unless it is told to look sooner.
SOON = ("--health-check-interval-secs", "5", "--cb-timeout-duration-secs", "5")
# Lengths of prompts: within a page, over several chunks of a pass, and near the whole context.
LENGTHS = (3, 29, 64, 257, 1500)


@dataclass
class Real:
    """Real servers and a router, started one by one; `urls` and processes by name."""

    sglang: Installed
    folder: Path
    stack: ExitStack
    ports: Ports = field(default_factory=Ports)
    urls: dict[str, str] = field(default_factory=dict)
    processes: dict[str, ServerProcess] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def start(self, name: str, *flags: str) -> str:
        """Start a server; its port is free."""
        port = self.ports.next()
        command = [str(self.sglang.python), "-m", "sglang.launch_server", "--model-path", str(self.sglang.model),
                   *FLAGS, "--sleep-on-idle", "--port", str(port), *flags]  # fmt: skip
        self.urls[name] = f"http://127.0.0.1:{port}"
        self.run(name, command)
        return self.urls[name]

    def run(self, name: str, command: list[str]) -> None:
        """Start a process, the first time or again."""
        self.commands[name] = command
        self.processes[name] = ServerProcess(command, self.folder / name, {})
        self.stack.callback(self.processes[name].stop)

    def log(self, name: str) -> str:
        """Return what a server has printed."""
        file = self.folder / name / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def wait(self, name: str) -> None:
        """Wait until a server is healthy."""
        until = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.urls[name]}/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < until, self.log(name)[-3000:]
                assert self.processes[name].alive, self.log(name)[-3000:]
            time.sleep(0.5)


@pytest.fixture(scope="module")
def sglang() -> Installed:
    return sglang_with_transfer()


@pytest.fixture(scope="module")
def real(sglang: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A plain server, a prefill and a decode server, and a router before the two."""
    with ExitStack() as stack:
        fleet = Real(sglang, tmp_path_factory.mktemp("real"), stack)
        bootstrap = str(fleet.ports.next())
        fleet.start("plain", "--disable-overlap-schedule")
        role = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", bootstrap)
        prefill = fleet.start("prefill", *ROLE_FLAGS, *role, "--enable-metrics")
        decode = fleet.start("decode", *ROLE_FLAGS, "--disaggregation-mode", "decode", "--enable-metrics")
        port, own = fleet.ports.next(), fleet.ports.next()
        for name in ("plain", "prefill", "decode"):
            fleet.wait(name)
        command = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation", "--prefill", prefill,
                   bootstrap, "--decode", decode, "--policy", "round_robin", "--port", str(port),
                   "--prometheus-port", str(own), "--log-level", "warn", *SOON]  # fmt: skip
        fleet.run("router", command)
        fleet.urls["router"] = f"http://127.0.0.1:{port}"
        wait_until_ready(fleet.urls["router"], 2)
        yield fleet
    assert nothing_left()


def prompt(length: int) -> list[int]:
    return random.Random(length).choices(range(10, 500), k=length)


def answer(url: str, ids: list[int], osl: int = 16, **more: Any) -> list[int]:
    """Return the tokens of a greedy answer."""
    body = {
        "input_ids": ids,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": osl, "ignore_eos": True},
        **more,
    }
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            tokens: list[int] = json.load(response)["output_ids"]
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return tokens


def test_prefill_and_decode_give_a_plain_servers_tokens_and_no_transfer_gives_others(real: Real) -> None:
    prompts = [prompt(length) for length in LENGTHS]
    plain = [answer(real.urls["plain"], ids) for ids in prompts]
    assert all(len(tokens) == 16 for tokens in plain)
    assert [answer(real.urls["router"], ids) for ids in prompts] == plain
    unsent = [answer(real.urls["decode"], ids, **FAKE) for ids in prompts[2:]]
    assert all(tokens != whole for tokens, whole in zip(unsent, plain[2:], strict=True)), "its KV cache was never sent"
    with urllib.request.urlopen(f"{real.urls['prefill']}/metrics", timeout=10) as response:
        text = response.read().decode()
    sent = [line for line in text.splitlines() if line.startswith("sglang:kv_transfer_total_mb_sum")]
    assert float(sent[0].split()[-1]) > 0.0


def test_sgtune_bench_measures_both_through_the_router_to_the_token(real: Real, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuner.cli.main", "bench", "--url", real.urls["router"], "--isl", "128",
               "--osl", "16", "--concurrency", "4", "--point-time", "3s", "--vocab-size", "512",
               "--server", real.urls["prefill"], "--server", real.urls["decode"], "--json"]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr  # 1: a crowded machine is unsteady
    document = json.loads(ran.stdout)
    point = document["points"][0]
    assert point["verdict"] in ("ok", "unsteady"), point["why"]
    assert not document["degraded"]
    assert point["output_tok_s"] > 0
    assert all(server["requests"] > 0 for server in point["servers"])


@contextmanager
def decoding(real: Real) -> Iterator[list[list[int] | OSError | http.client.HTTPException]]:
    """Send a request of 400 tokens and wait until it decodes; then its answer or error is in the list within a minute.

    Or never: the router goes on waiting for the prefill half of an answer whose decode server has died.
    """
    ends: list[list[int] | OSError | http.client.HTTPException] = []

    def send() -> None:
        try:
            ends.append(answer(real.urls["router"], prompt(64), 400))
        except (OSError, http.client.HTTPException) as error:
            ends.append(error)

    running = threading.Thread(target=send, daemon=True)
    until, before = time.monotonic() + 60, real.log("decode").count("Decode batch")
    running.start()
    while real.log("decode").count("Decode batch") == before:
        assert time.monotonic() < until
        time.sleep(0.1)
    yield ends
    running.join(timeout=60)


def test_a_killed_prefill_server_ends_new_requests_and_no_running_one(
    real: Real, record_property: Callable[[str, object], None]
) -> None:
    """The answer that decodes when its prefill server dies is whole.

    The router tries the next one five times; each time the decode server looks for the prefill server for 15 s.
    """
    with decoding(real) as ends:
        real.processes["prefill"].kill()
        began_s = time.monotonic()
        with pytest.raises(urllib.error.HTTPError) as refused:
            answer(real.urls["router"], prompt(29))
        assert refused.value.code in (500, 502, 503)
        record_property("refused after s", time.monotonic() - began_s)
        assert time.monotonic() - began_s < 150
    assert [len(tokens) for tokens in ends if isinstance(tokens, list)] == [400]


def test_a_new_prefill_server_serves_again_and_a_killed_decode_server_takes_its_answers_with_it(
    real: Real, record_property: Callable[[str, object], None]
) -> None:
    real.run("prefill", real.commands["prefill"])
    real.wait("prefill")
    began_s, ids = time.monotonic(), prompt(257)
    tokens: list[int] = []
    while not tokens:
        try:
            tokens = answer(real.urls["router"], ids)
        except urllib.error.HTTPError:
            assert time.monotonic() - began_s < 150
            time.sleep(0.5)
    record_property("served again after s", time.monotonic() - began_s)
    assert tokens == answer(real.urls["plain"], ids)
    with decoding(real) as ends:
        real.processes["decode"].kill()
    assert not any(isinstance(end, list) for end in ends), "nobody has its tokens any more"
