"""Emulated prefill and decode servers: SGLang's protocol behind its own router, its order, its log, its metrics."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.serving.fleet_replay import Transfer
from planner.fleets.deployment import Role
from tests.emulated_fleet import Fleet, emulated_fleet, start_again
from tests.left import nothing_left
from tests.typical import filled
from tuner.emulator.roles import FAKE_HOST, RolePlayed, copies_sent, role_played
from tuner.engines.world import World

# A KV cache of 4,000 tokens (281 MB) takes 0.3 s: enough to be seen beside the prefill pass.
ISL, TRANSFER_S, LATENCY_S = 4000, 0.281, 0.02
WORLD = World(name="slow-network", boot_s=0.5, noise=0.0, transfer_gb_s=1.0, transfer_latency_ms=1e3 * LATENCY_S)
TRANSFER = Transfer(latency_s=LATENCY_S, bytes_per_token=70_272.0, bytes_s=1e9)


def played(role: str, *, attn_dp: int = 1, **arguments: Any) -> RolePlayed:
    config = filled(attn_dp_size=attn_dp).with_flags(disaggregation_mode=role)
    role_of_it = role_played(config, arguments, TRANSFER)
    assert role_of_it is not None
    return role_of_it


def test_every_decode_rank_without_a_prefill_rank_of_its_own_is_sent_a_copy() -> None:
    assert [copies_sent(8, 8), copies_sent(8, 1), copies_sent(1, 8), copies_sent(2, 8)] == [1, 1, 8, 4]
    one, eight = played("prefill").sending(ISL, 1), played("prefill").sending(ISL, 8)
    assert one.seconds == pytest.approx(LATENCY_S + TRANSFER_S, rel=0.01)
    assert eight.size == 8 * one.size
    assert eight.seconds - LATENCY_S == pytest.approx(8 * (one.seconds - LATENCY_S))


def test_slots_for_what_is_being_sent_come_with_few_requests_a_worker() -> None:
    assert played("decode").extra_slots == 0
    assert played("decode", max_running_requests=32).extra_slots == 64
    assert played("decode", max_running_requests=33).extra_slots == 0
    assert played("decode", attn_dp=8, max_running_requests=64).extra_slots == 128
    assert played("decode", max_running_requests=16, disaggregation_decode_extra_slots=3).extra_slots == 3


def test_a_server_of_both_phases_plays_no_role() -> None:
    assert role_played(filled(), {}, TRANSFER) is None
    assert played("prefill").role is Role.PREFILL


def test_only_the_fake_backend_takes_requests_that_meet_nobody() -> None:
    assert played("decode").meeting_of({"text": "x"}) is None
    alone = played("decode", disaggregation_transfer_backend="fake")
    meeting = alone.meeting_of({"text": "x"})
    assert meeting is not None
    assert alone.is_fake(meeting)
    told = played("prefill").meeting_of({"bootstrap_host": FAKE_HOST, "bootstrap_port": None, "bootstrap_room": 0})
    assert told is not None
    assert played("prefill").is_fake(told)


# -- behind SGLang's own router ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if find_spec("sglang_router") is None:
        pytest.skip("pip install -e '.[dev]' brings SGLang's router")
    with emulated_fleet(tmp_path_factory.mktemp("fleet"), world=WORLD) as running:
        yield running
    assert nothing_left()


def post(url: str, body: dict[str, Any]) -> urllib.request.Request:
    return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})


def streamed(url: str, body: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """Return the pieces of an answer with the seconds after which each came."""
    began_s, pieces = time.monotonic(), []
    with urllib.request.urlopen(post(url, {**body, "stream": True}), timeout=60) as response:
        for line in response:
            text = line.decode().removeprefix("data: ").strip()
            if text and text != "[DONE]":
                pieces.append((time.monotonic() - began_s, json.loads(text)))
    return pieces


def generate(tokens: int, osl: int, **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": osl, "ignore_eos": True}
    return {"input_ids": list(range(7, 7 + tokens)), "sampling_params": sampling, **more}


def sums(url: str) -> dict[str, float]:
    """Return the values of a server's metrics by name, all labels together."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    values: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix("sglang:")
            values[name] = values.get(name, 0.0) + sample.value
    return values


def test_the_first_token_waits_for_prefill_and_transfer_and_the_rest_for_decode_steps(fleet: Fleet) -> None:
    before = sums(fleet.urls["prefill-0"]).get("kv_transfer_latency_ms_count", 0.0)
    pieces = streamed(f"{fleet.router}/generate", generate(ISL, 40))
    assert pieces[-1][1]["meta_info"]["completion_tokens"] == 40
    assert pieces[-1][1]["meta_info"]["finish_reason"] == {"type": "length", "length": 40}
    assert pieces[0][0] > LATENCY_S + TRANSFER_S, "the cache was sent before the first token was told"
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(pieces)]
    assert sum(gaps) / 39 < 0.03, "no prompt stands between two tokens"
    prefill = sums(fleet.urls["prefill-0"])
    assert prefill["kv_transfer_latency_ms_count"] == before + 1
    decode = sums(fleet.urls["decode-0"])
    assert decode["realtime_tokens_total"] > 0
    assert (decode["num_decode_transfer_queue_reqs"], prefill["num_prefill_inflight_queue_reqs"]) == (0.0, 0.0)


def test_the_openai_endpoints_answer_too(fleet: Fleet) -> None:
    pieces = streamed(f"{fleet.router}/v1/completions", {"model": "r1", "prompt": "a b c d " * 100, "max_tokens": 9})
    assert pieces[-1][1]["usage"]["completion_tokens"] == 9
    with urllib.request.urlopen(
        post(f"{fleet.router}/v1/chat/completions", {"model": "r1", "messages": [{"role": "user", "content": "hi"}],
                                                     "max_tokens": 5}), timeout=60,
    ) as response:  # fmt: skip
        assert json.load(response)["usage"]["completion_tokens"] == 5


def test_the_prefill_server_says_size_speed_and_time_of_a_transfer(fleet: Fleet) -> None:
    url = fleet.urls["prefill-0"]
    before = sums(url)
    streamed(f"{fleet.router}/generate", generate(ISL, 2))
    after = sums(url)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["kv_transfer_total_mb_sum"] == pytest.approx(ISL * 70_272 / 2**20)
    assert grown["kv_transfer_latency_ms_sum"] == pytest.approx(1e3 * (LATENCY_S + TRANSFER_S), rel=0.01)
    assert grown["kv_transfer_speed_gb_s_sum"] == pytest.approx(
        ISL * 70_272 / 2**30 / (LATENCY_S + TRANSFER_S), rel=0.01
    )  # fmt: skip
    with urllib.request.urlopen(f"{url}/v1/loads", timeout=10) as response:
        queues = json.load(response)["loads"][0]["disaggregation"]
    assert queues["mode"] == "prefill"
    assert queues["kv_transfer_latency_ms"] == pytest.approx(1e3 * (LATENCY_S + TRANSFER_S), rel=0.01)


def test_the_logs_are_those_of_the_roles(fleet: Fleet) -> None:
    streamed(f"{fleet.router}/generate", generate(100, 90))
    assert "#bootstrap-req: 0, #inflight-req: " in fleet.log("prefill-0")
    assert "Decode batch" not in fleet.log("prefill-0")
    assert "#prealloc-req: 0, #transfer-req: 0" in fleet.log("decode-0")
    assert "Prefill batch" not in fleet.log("decode-0")


def test_a_request_that_did_not_come_through_the_router_is_refused_unless_it_is_fake(fleet: Fleet) -> None:
    for url in fleet.urls.values():
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            urllib.request.urlopen(post(f"{url}/generate", generate(10, 2)), timeout=10)
        refused.value.close()
        fake = generate(10, 2, bootstrap_host=FAKE_HOST, bootstrap_room=0)
        with urllib.request.urlopen(post(f"{url}/generate", fake), timeout=10) as response:
            answer = json.load(response)
        assert answer["meta_info"]["completion_tokens"] == (1 if url == fleet.urls["prefill-0"] else 2)


# -- what is lost ------------------------------------------------------------------------------------------------


@contextmanager
def both_halves(fleet: Fleet, room: int) -> Iterator[dict[str, Any]]:
    """Send a request to both servers, as a router does; at the end each answer, or the error, stands by its server."""
    port = re.search(r"'disaggregation_bootstrap_port': (\d+)", fleet.log("prefill-0"))
    assert port is not None
    body = generate(ISL, 20, bootstrap_host="127.0.0.1", bootstrap_port=int(port[1]), bootstrap_room=room)
    answers: dict[str, Any] = {}

    def send(name: str) -> None:
        try:
            with urllib.request.urlopen(post(f"{fleet.urls[name]}/generate", body), timeout=60) as response:
                answers[name] = json.load(response)
        except urllib.error.HTTPError as error:
            answers[name] = error
            error.close()
        except (OSError, http.client.HTTPException) as error:
            answers[name] = error

    threads = [threading.Thread(target=send, args=(name,)) for name in fleet.urls]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(60)


def queued(url: str, queue: str) -> int:
    """Return the requests in a queue of a server, as /v1/loads says it."""
    with urllib.request.urlopen(f"{url}/v1/loads", timeout=10) as response:
        return int(json.load(response)["loads"][0]["disaggregation"][f"{queue}_queue_reqs"])


def wait_for(count: Callable[[], int], wanted_count: int) -> None:
    until = time.monotonic() + 30.0
    while count() != wanted_count:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sglang_router") is None, reason="pip install -e '.[dev]' brings SGLang's router")
def test_each_half_of_a_request_fails_when_the_server_of_the_other_is_killed(tmp_path: Path) -> None:
    slow = replace(WORLD, transfer_gb_s=0.1)
    with emulated_fleet(tmp_path, world=slow) as fleet:
        prefill, decode = fleet.urls["prefill-0"], fleet.urls["decode-0"]
        with both_halves(fleet, 7) as answers:
            wait_for(lambda: queued(prefill, "prefill_inflight"), 1)
            fleet.processes["decode-0"].kill()
        assert answers["prefill-0"].code == 500
        assert sums(prefill)["num_transfer_failed_reqs_total"] == 1.0
        assert queued(prefill, "prefill_inflight") == 0, "its slot is free again"
        assert "Prefill transfer failed for request" in fleet.log("prefill-0")
        start_again(fleet, "decode-0")
        with both_halves(fleet, 8) as answers:
            wait_for(lambda: queued(decode, "decode_transfer"), 1)
            fleet.processes["prefill-0"].kill()
        assert answers["decode-0"].code == 500
        assert queued(decode, "decode_transfer") == 0
        log = (tmp_path / "decode-0-again" / "server.log").read_text()
        assert "Lost connection with prefill instance" in log, "after two heartbeats"
