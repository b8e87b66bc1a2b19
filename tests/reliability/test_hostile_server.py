"""A load generator meets a server that means it harm: clients are replaced, failures named, points end in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hwprobe.errors import SgtuneError
from models.workload import Workload
from tests.tuner.load.test_http_stream import HEAD, Wire, chunked
from tuner.bench.http_stream import LONGEST_EVENT, Stream, Tally
from tuner.bench.point import MeasuredPoint, Settings, measure_point
from tuner.bench.server_side import Address, read_facts, read_load
from tuner.bench.worker import closing_figures
from tuner.choices import Backend
from tuner.server.ask import HttpRequest, ask

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(least_s=0.3, waves=1.0, most_s=2.0, vocabulary=1000, workers=1)


@contextmanager
def hostile(mood: str, seed: int = 0) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tools" / "hostile_server.py"), "--mood", mood, "--seed", str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def measured(url: str) -> MeasuredPoint:
    return measure_point(url, Workload.checked(16, 8, 2), settings=SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mood", ["odd_figures", "not_an_object", "endless", "bad_chunks", "bad_length", "refuses", "garbage"]
)
def test_whatever_it_answers_the_point_ends_with_a_name_for_it(mood: str) -> None:
    began = time.monotonic()
    with hostile(mood) as url:
        try:
            point = measured(url)
        except SgtuneError as error:
            said = str(error)
            assert "no request succeeded at concurrency 2: " in said
            assert "\x1b" not in said
        else:
            assert point.window.requests > 2, "clients that failed were replaced"
    assert time.monotonic() - began < 60.0


def ended(data: bytes, most_tokens: int = 100) -> tuple[str, bool]:
    """Return how a stream ends that was sent this, and whether its connection was cut off."""
    ends: list[str] = []
    stream, wire = Stream(Tally(), lambda one: ends.append(one.error)), Wire()
    stream.connection_made(wire)
    stream.send(b"x", most_tokens=most_tokens)
    for start in range(0, len(data), 65_536):
        stream.data_received(data[start : start + 65_536])
    return (ends or ["(goes on)"])[0], wire.aborted


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", "not an answer of HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "not a"),
        (b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n", "not an answer of HTTP"),
        (HEAD + b"-5\r\nabc", "not a chunk size"),
        (HEAD + b"1_0\r\nabc", "not a chunk size"),
        (HEAD + b"f" * 5000, "no end"),
        (b"X" * 70_000, "no end of its head"),
        (HEAD + chunked(b"x" * (LONGEST_EVENT + 1)), "an event of more than"),
        (HEAD + chunked(b'data: {"meta_info": {"completion_tokens": 1000000000}}\n\n'), "does not end"),
        (HEAD + chunked(*[b"data: {}\n\n" * 50] * 10), "does not end"),
    ],
)
def test_an_answer_that_is_none_ends_as_an_error_and_its_connection_with_it(data: bytes, why: str) -> None:
    error, aborted = ended(data)
    assert why in error
    assert aborted


@pytest.mark.parametrize(
    "meta", ["null", "[]", "3", '"x"', '{"prompt_tokens": null}', '{"completion_tokens": [1]}', '{"cached_tokens": {}}',
             '{"completion_tokens": 1e30, "prompt_tokens": "9"}', "[" * 2000],
)  # fmt: skip
def test_closing_figures_that_are_none_are_those_that_were_counted(meta: str) -> None:
    text = b'data: {"meta_info": ' + meta.encode() + b"}"
    prompt, tokens, cached = closing_figures(Backend.SGLANG, text, 7)
    assert (prompt, tokens, cached) == (0, 7, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_odd_answers_about_itself_say_nothing_and_raise_nothing(seed: int) -> None:
    with hostile("good", seed) as url:
        address = Address.parse(url)
        for _ in range(30):
            facts = read_facts(address)
            assert "\x1b" not in facts.served_model + facts.version
            assert facts.context_length is None or facts.context_length >= 0
            assert facts.info.get("api_key") in (None, "(hidden)")
            read_load(address)


@contextmanager
def dripping(byte_s: float) -> Iterator[int]:
    """Serve an answer of a byte at a time."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
                    try:
                        sock.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(byte_s)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def test_an_answer_of_a_byte_at_a_time_ends_when_its_time_is_over() -> None:
    began = time.monotonic()
    with dripping(0.05) as port, pytest.raises(TimeoutError, match="no whole answer within 1 s"):
        ask(HttpRequest(host="127.0.0.1", port=port, method="GET", path="/x"), timeout_s=1.0)
    assert time.monotonic() - began < 10.0


@pytest.mark.slow
def test_a_load_worker_that_is_killed_is_an_error_that_says_so() -> None:
    """In a tune it is an outcome of the trial (LiveServer.measure)."""

    def kill() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for child in psutil.Process().children(recursive=True):
                if "tuner.bench.worker" in child.cmdline():
                    time.sleep(0.5)
                    os.kill(child.pid, signal.SIGKILL)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    with hostile("good") as url:
        thread.start()
        with pytest.raises(SgtuneError, match=r"exit code -9 \(SIGKILL: out of memory\?\)"):
            measure_point(url, Workload.checked(16, 8, 2), settings=Settings(least_s=20.0, most_s=30.0, workers=1))
        thread.join()
