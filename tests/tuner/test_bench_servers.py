"""Servers behind a router: each is read beside the total, a slow one is named, and a lost one degrades the answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from tests.left import nothing_left
from tuner.bench import each_server
from tuner.bench.each_server import Counters, ServerState, read_counters, shares
from tuner.engines.build import world_toml
from tuner.engines.world import Effect, World
from tuner.server.ports import Ports
from tuner.server.process import ServerProcess

Sgtune = Callable[..., Any]
METRICS = Path(__file__).parents[1] / "data/logs/cpu_0.5.23_metrics.txt"


def worked(gap_ms: float, tokens: int = 1000, at_s: float = 10.0) -> Counters:
    return Counters(
        at_s=at_s, requests=10, output_tokens=tokens, first_token_s=1.0, first_tokens=10, gaps=tokens,
        gap_s=tokens * gap_ms / 1e3,
    )  # fmt: skip


BLANK = Counters(at_s=0.0)


def test_the_one_whose_tokens_take_longer_is_slow() -> None:
    found = shares(["a", "b", "c"], [BLANK] * 3, [worked(10.0), worked(10.4), worked(14.0)])
    assert [share.state for share in found] == ["ok", "ok", "slow"]
    assert found[2].why == "14.0 ms between tokens, the others 10.2 (+37%)"
    assert (found[0].requests, found[0].output_tok_s, found[0].ttft_ms) == (10, 100.0, 100.0)


def test_two_alike_one_alone_and_a_handful_of_tokens_are_not() -> None:
    assert {share.state for share in shares(["a", "b"], [BLANK] * 2, [worked(10.0), worked(11.0)])} == {"ok"}
    assert shares(["a"], [BLANK], [worked(10.0)])[0].state is ServerState.OK
    few = shares(["a", "b"], [BLANK] * 2, [worked(10.0), worked(90.0, tokens=20)])
    assert (few[1].state, few[1].tpot_ms) == ("ok", None)


def test_one_that_gives_no_answer_is_lost_and_one_started_anew_counts_from_zero() -> None:
    assert shares(["a"], [BLANK], [None])[0].state is ServerState.LOST
    again = shares(["a"], [worked(10.0, tokens=5000)], [worked(10.0, at_s=20.0)])[0]
    assert (again.state, again.output_tok_s) == ("ok", 100.0)


def test_sglangs_own_metrics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(each_server, "asked", lambda *_, **__: (200, METRICS.read_text()))
    found = read_counters("http://127.0.0.1:1", None)
    assert found is not None
    assert (found.requests, found.output_tokens) == (1.0, 8.0)
    monkeypatch.setattr(each_server, "asked", lambda *_, **__: (404, "no"))
    with pytest.raises(InputError, match="--enable-metrics"):
        read_counters("http://127.0.0.1:1", None)


@contextmanager
def fleet(folder: Path) -> Iterator[tuple[str, list[ServerProcess], list[str]]]:
    """Three emulated servers, the last of them half as fast again, behind SGLang's own router."""
    worlds = {"even": World(name="even", boot_s=0.5, noise=0.0)}
    worlds["slow"] = World(
        name="slow", boot_s=0.5, noise=0.0, effects=(Effect(when={"tp_size": 8}, time_factor=1.5),)
    )  # fmt: skip
    for name, world in worlds.items():
        (folder / f"{name}.toml").write_text(world_toml(world))
    ports = Ports()
    with ExitStack() as stack:
        servers, urls = [], []
        for at, name in enumerate(("even", "even", "slow")):
            port = ports.next()
            command = [sys.executable, "-m", "tuner.emulator", "--world", str(folder / f"{name}.toml"), "--",
                       "--model-path", "r1", "--tp-size", "8", "--port", str(port), "--enable-metrics"]  # fmt: skip
            servers.append(ServerProcess(command, folder / str(at), {}))
            stack.callback(servers[-1].stop)
            urls.append(f"http://127.0.0.1:{port}")
        port, own = ports.next(), ports.next()
        options = ["--policy", "round_robin", "--port", str(port), "--prometheus-port", str(own), "--log-level", "warn"]
        command = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", *urls, *options]
        stack.callback(ServerProcess(command, folder / "router", {}).stop)
        wait_until_ready(f"http://127.0.0.1:{port}", len(urls))
        yield f"http://127.0.0.1:{port}", servers, urls


def wait_until_ready(router: str, workers: int) -> None:
    until = time.monotonic() + 120.0
    while True:
        try:
            with urllib.request.urlopen(f"{router}/readiness", timeout=5) as response:
                if json.load(response)["healthy_workers"] == workers:
                    return
        except OSError:
            assert time.monotonic() < until
        time.sleep(0.2)


def requests_of(url: str) -> float:
    counters = read_counters(url, None)
    assert counters is not None
    return counters.requests


def settled(url: str) -> float:
    """Wait until what the last clients left behind has ended; return the requests so far."""
    before = -1.0
    while (now := requests_of(url)) != before:
        before = now
        time.sleep(1.0)
    return now


def wait_for_requests(url: str, wanted: float) -> None:
    until = time.monotonic() + 120.0
    while requests_of(url) < wanted:
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sglang_router") is None, reason="pip install -e '.[dev]' brings SGLang's router")
def test_behind_the_real_router_the_slow_server_is_named_and_a_lost_one_degrades(
    sgtune: Sgtune, tmp_path: Path
) -> None:
    with fleet(tmp_path) as (router, servers, urls):
        named = [word for url in urls for word in ("--server", url)]
        asked = ("bench", "--url", router, "--isl", "64", "--osl", "32", "--concurrency", "6", "--json")
        ran = sgtune(*asked, "--point-time", "3s", *named)
        document = json.loads(ran.out)
        assert document["simulated"], "the servers behind the router say so, it does not"
        assert not document["degraded"]
        shown = document["points"][0]["servers"]
        assert [share["url"] for share in shown] == urls
        assert [share["state"] for share in shown] == ["ok", "ok", "slow"], shown
        together = sum(share["output_tok_s"] for share in shown)
        assert together < 1.3 * document["points"][0]["output_tok_s"]
        before = settled(urls[0])
        command = [sys.executable, "-m", "tuner.cli.main", *asked, "--point-time", "8s", *named]
        bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_requests(urls[0], before + 4)
        servers[0].kill()
        out, err = bench.communicate(timeout=300)
        assert bench.returncode == 1, err
        document = json.loads(out)
        assert document["degraded"]
        assert document["points"][0]["servers"][0]["state"] == "lost"
        refused = sgtune(*asked, *named)
        assert refused.code == 2
        assert "nothing answers there" in refused.err
    assert nothing_left()
