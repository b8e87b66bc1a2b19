"""A trace sent to a server: prompts that share what they share there, sessions, and the hits that are due."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.traffic.trace import Trace, TraceBuilder
from tests.documents import document_of
from tuner.bench.requests import Seen
from tuner.bench.server_side import Address
from tuner.choices import Backend
from tuner.trace_bench.payloads import TracePayloads
from tuner.trace_bench.trace_point import TraceSettings, expected_hits, trace_shares

SETTINGS = TraceSettings(
    backend=Backend.SGLANG, model="", vocabulary=32_000, seed=3, most_s=60.0, patience_s=30.0, key=None, slos=()
)  # fmt: skip
READY_S = 120.0


def chat() -> Trace:
    """Two sessions of two turns behind one system prompt of 512 tokens."""
    builder = TraceBuilder(form="test")
    for number in (0, 1):
        first = [(1, 512), (10 + number, 100)]
        builder.add(0.1 * number, 612, 8, session=number)
        builder.add_pieces([*first, (20 + number, 8)], 1)
        builder.add(0.1 * number + 0.2, 650, 4, session=number, think_s=0.2)
        builder.add_pieces([*first, (20 + number, 8), (30 + number, 30)])
    return builder.trace("test")


def test_prompts_begin_alike_for_as_long_as_the_trace_says_and_not_a_token_longer() -> None:
    (share,) = trace_shares(Address.parse("http://127.0.0.1:1"), chat(), SETTINGS)
    payloads = TracePayloads(share)
    one, other = payloads.ids(0), payloads.ids(1)
    assert (len(one), len(other)) == (612, 612)
    assert one[:512] == other[:512]
    assert one[512] != other[512]


def test_a_later_turn_holds_the_answer_that_the_server_gave() -> None:
    (share,) = trace_shares(Address.parse("http://127.0.0.1:1"), chat(), SETTINGS)
    payloads = TracePayloads(share)
    first, later = (next(r for r in share.requests if (r.after >= 0) is after and r.isl) for after in (False, True))
    payloads.learn(first, b'data: {"output_ids": [101, 102, 103, 104, 105, 106, 107, 108]}')
    turn = next(request for request in share.requests if request.after == first.index)
    assert payloads.ids(turn.index)[612:620] == [101, 102, 103, 104, 105, 106, 107, 108]
    assert later.think_s == pytest.approx(0.2)


def test_hits_are_due_from_what_was_computed_when_a_request_was_sent() -> None:
    trace = chat()

    def seen(index: int, sent: float, first: float, last: float) -> Seen:
        osl = int(trace.osl[index])
        return Seen(index, sent, sent, first, last, last, int(trace.isl[index]), osl, 0, osl, 0, osl)

    early = expected_hits(trace, [seen(0, 0.0, 0.5, 1.0), seen(1, 0.1, 0.6, 1.0)], answers=True)
    late = expected_hits(trace, [seen(0, 0.0, 0.5, 1.0), seen(1, 0.7, 0.9, 1.2)], answers=True)
    turn = expected_hits(trace, [seen(0, 0.0, 0.5, 1.0), seen(2, 1.2, 1.5, 2.0)], answers=True)
    sure = expected_hits(trace, [seen(0, 0.0, 0.5, 1.0), seen(1, 0.1, 0.6, 1.0)], answers=True, at_once=True)
    assert sure == (0, 512)
    unknown = expected_hits(trace, [seen(0, 0.0, 0.5, 1.0), seen(2, 1.2, 1.5, 2.0)], answers=False)
    assert (early, late, turn, unknown) == ((0, 0), (0, 512), (0, 619), (0, 612))


@pytest.fixture
def emulated(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = tmp_path / "world.toml"
    world.write_text("boot_s = 0.2\nnoise = 0.0\n")
    words = [sys.executable, "-m", "tuner.emulator", "--hardware", "h200x8", "--world", str(world), "--"]
    flags = ["--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*words, *flags], stdout=subprocess.DEVNULL) as server:
        try:
            _wait_ready(url)
            yield url
        finally:
            server.kill()


def _wait_ready(url: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


@pytest.mark.alone
def test_the_emulated_server_hits_what_is_expected_and_what_is_predicted(
    sgtune: Callable[..., Any], emulated: str, tmp_path: Path
) -> None:
    path, predicted = tmp_path / "trace.jsonl", tmp_path / "predicted.jsonl"
    rows = []
    for session in range(6):
        named = {"session_id": f"s{session}", "timestamp": 1500 * session, "hash_ids": [0, 1, 10 + session]}
        rows.append(named | {"input_length": 1100, "output_length": 12})
        rows.append({"session_id": f"s{session}", "delay": 500, "input_length": 40, "output_length": 6})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sgtune("bench", "--url", emulated, "--traffic", str(path), "--slo", "ttft:p99<5s", "--json")
    seen = document_of("bench", done.out)["traffic"]
    assert (seen["requests"], seen["errors"], seen["unended"]) == (12, 0, 0)
    due = 5 * 1024 + 6 * 1111
    assert seen["hits_as_expected"] == 12
    assert seen["expected_cached_tokens"] <= seen["cached_tokens"] <= seen["expected_at_most_tokens"] == due
    assert sum(row["requests"] for row in seen["ttft_by_cached_share"]) == 12
    told = sgtune("predict", "--hardware", "h200x8", "--traffic", str(path), "--launch-args", "--tp 8", "--out",
                  str(predicted))  # fmt: skip
    assert told.code == 0, told.err
    assert json.loads(predicted.read_text())["hit_rate"] == pytest.approx(due / (6 * (1100 + 1152)))


def test_what_a_trace_says_is_not_said_twice(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\n')
    done = sgtune("bench", "--url", "http://127.0.0.1:9", "--traffic", str(path), "--request-rate", "3")
    assert done.code == 2
    assert "--request-rate" in done.err
