"""Ready means: this very server, with tokens. Everything else has a class, in bounded time."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.seam import FailureKind, LaunchFailed
from tuner.server import readiness
from tuner.server.process import ServerProcess
from tuner.server.readiness import PHASES, ExpectedStart, wait_until_ready

# Answers like SGLang and logs every request as it does; MODE says what is wrong with it.
SERVER = """
import http.server, json, os, sys, time
port, mode = int(sys.argv[1]), sys.argv[2]
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        print(f'INFO: 127.0.0.1 "{self.command} {self.path} HTTP/1.1" {time.time()}', flush=True)
    def answer(self, document, code=200):
        body = json.dumps(document).encode()
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/health":
            return self.answer({}, 503 if mode == "never healthy" else 200)
        self.answer({"served_model_name": "stranger" if mode == "stranger" else "mine"})
    def do_POST(self):
        if mode == "no token":
            time.sleep(60)
        if mode == "dies":
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
            os._exit(1)
        self.answer({"output_ids": [1] * (2 if mode == "short" else 4)})
if mode == "silent":
    time.sleep(60)
print("Load weight begin.\\nLoad weight end.\\nMemory pool end.\\nApplication startup complete.", flush=True)
if mode == "dies":
    print("The server is fired up and ready to roll!", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
QUICK = tuple(replace(phase, stall_s=2.0) for phase in PHASES)


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Callable[[str], object]]:
    started: list[ServerProcess] = []

    def wait(mode: str) -> object:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started.append(ServerProcess([sys.executable, "-c", SERVER, str(port), mode], tmp_path, {}, drain_s=1.0))
        return wait_until_ready(started[-1], port, ExpectedStart(served_name="mine", phases=QUICK))

    yield wait
    for process in started:
        process.stop()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("silent", FailureKind.LAUNCH_TIMEOUT),
        ("never healthy", FailureKind.LAUNCH_TIMEOUT),
        ("stranger", FailureKind.PORT),
        ("no token", FailureKind.STALLED),
        ("short", FailureKind.WRONG_OUTPUT),
        ("dies", FailureKind.OOM_LOAD),
    ],
)
def test_what_is_not_ready_is_refused_with_its_class(
    ready: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, mode: str, kind: FailureKind
) -> None:
    monkeypatch.setattr(readiness, "FIRST_TOKEN_S", 1.0)
    with pytest.raises(LaunchFailed) as failed:
        ready(mode)
    assert failed.value.kind is kind
    assert failed.value.seconds < 15.0


def test_a_server_that_answers_with_tokens_is_ready(ready: Callable[[str], object]) -> None:
    answer = ready("sound")
    assert isinstance(answer, readiness.Ready)
    assert answer.server_info["served_model_name"] == "mine"


@pytest.mark.alone
def test_death_is_noticed_within_a_second(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-c", "import time; time.sleep(1); raise SystemExit(2)"], tmp_path, {})
    with pytest.raises(LaunchFailed) as failed:
        wait_until_ready(process, 9, ExpectedStart(served_name="mine"))
    assert failed.value.seconds < 2.5
    process.stop()
    assert time.monotonic() - process.started < 4.0
