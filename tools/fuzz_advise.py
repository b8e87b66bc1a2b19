"""`sgtune advise` against servers that answer with whatever breaks a reader: malformed, hostile, endless, enormous.

    python tools/fuzz_advise.py --cases 1000 [--seed 0]

Each case is a server of its own on a socket, which answers /server_info, /v1/loads and /metrics in one of the manners
below. Advice must come, or one clear error; never another exception, never past the time limit, in bounded memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from rich.console import Console

from hwprobe.errors import SgtuneError
from hwprobe.files import encode_json
from tuner.advise.advise_document import advise_document
from tuner.advise.look import AdviseQuestion, look
from tuner.bench.server_side import Address
from tuner.cli.views.advise_view import show_advice
from tuner.scrape import source
from tuner.scrape.collect import Watch

LIMIT_S = 1.0  # of one answer, here; ten seconds in the command
MOST_WALL_S, MOST_CPU_S = 40.0, 8.0  # of a case, which asks up to six times, on a machine that may be busy
HOSTILE = (
    None, [], {}, "text", -1, 0, 1, 10**25, -(10**9), 1e308, 1e-308, True, "\x1b[31mred", "[bold]", [[[]]], "9" * 5000,
    "NaN", "--tp 8", "--tp 0", "--tp 999999", "--chunked-prefill-size -5", "0.5.23", "9999.1", "' \" --tp", "\x00",
)  # fmt: skip
SCRATCHES = ("", "\n", "{", "}", '"', "\\", "=", " ", "\x00", "\udcff", "9" * 400, "NaN", "-Inf", "#")
Send = Callable[[bytes], None]
INFO = (HOME / "tests/data/logs/cpu_0.5.23_server_info.json").read_text(encoding="utf-8")
LOADS = (HOME / "tests/data/logs/cpu_0.5.23_v1_loads.json").read_text(encoding="utf-8")
METRICS = (HOME / "tests/data/logs/cpu_0.5.23_metrics.txt").read_text(encoding="utf-8")


def good_info() -> dict[str, Any]:
    """Return the answer of an H200 server of DeepSeek-R1, so that what follows is read at all."""
    info: dict[str, Any] = json.loads(INFO)
    words = "--model-path deepseek-ai/DeepSeek-R1 --trust-remote-code --tp 8 --enable-metrics"
    return info | {"launch_command": words, "device": "cuda", "max_total_num_tokens": 600_000, "tp_size": 8}


def busy_metrics(dice: random.Random) -> str:
    """Return a plausible exposition of a server at work."""
    values = {"num_requests_total": 400, "prompt_tokens_total": 400_000, "generation_tokens_total": 80_000,
              "num_running_reqs": 32, "num_queue_reqs": dice.choice([0, 40]), "full_token_usage": dice.random(),
              "time_to_first_token_seconds_sum": 200, "time_to_first_token_seconds_count": 400,
              "e2e_request_latency_seconds_sum": 2000, "e2e_request_latency_seconds_count": 400,
              "request_time_per_output_token_seconds_sum": 9,
              "request_time_per_output_token_seconds_count": 400}  # fmt: skip
    lines = METRICS.splitlines()
    for number, line in enumerate(lines):
        name = line.partition("{")[0].removeprefix("sglang:")
        if name in values and not line.startswith("#"):
            lines[number] = line.rpartition(" ")[0] + f" {values.pop(name)}"
    return "\n".join([*lines, *(f"sglang:{name} {value}" for name, value in values.items())]) + "\n"


# -- what is wrong with a text ---------------------------------------------------------------------------------------


def poisoned(document: Any, dice: random.Random, count: int) -> Any:
    """Return a document with hostile values at some of its places."""
    for _ in range(count):
        node = document
        while isinstance(node, dict | list) and node:
            key = dice.choice(list(node)) if isinstance(node, dict) else dice.randrange(len(node))
            if not isinstance(node[key], dict | list) or not node[key] or dice.random() < 0.3:
                node[key] = dice.choice(HOSTILE)
                break
            node = node[key]
    return document


def scratched(text: str, dice: random.Random) -> str:
    """Return a text with bytes changed, lost, doubled, and lines out of place."""
    pieces = list(text)
    for _ in range(dice.randrange(1, 60)):
        at = dice.randrange(len(pieces))
        pieces[at] = dice.choice(
            ["", "\n", "{", "}", '"', "\\", "=", " ", "\x00", "\udcff", "9" * 400, "NaN", "-Inf", "#"]
        )
    damaged = "".join(pieces)
    return damaged[: dice.randrange(len(damaged))] if dice.random() < 0.2 else damaged


def numbered(text: str, dice: random.Random) -> str:
    """Return an exposition whose values are out of this world."""
    words = ("NaN", "+Inf", "-Inf", "-1", "0", "1e300", "-1e300", "1e-300", "x", "0x10", "9" * 400)
    lines = [
        f"{line.rpartition(' ')[0]} {dice.choice(words)}" if dice.random() < 0.3 and not line.startswith("#") else line
        for line in text.splitlines()
    ]
    return "\n".join(lines) + "\n"


# -- how an answer is sent -------------------------------------------------------------------------------------------


def plain(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def closing(send: Send, body: bytes) -> None:
    send(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + body)


def slow(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for at in range(60):
        send(body[at : at + 1] or b" ")
        time.sleep(0.1)


def endless(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    line = b"sglang:num_running_reqs 3\n" * 4000
    while True:
        send(b"%x\r\n%s\r\n" % (len(line), line))


def lying(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + body)


def continuing(send: Send, body: bytes) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def headers(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(5000)))


def redirecting(send: Send, body: bytes) -> None:
    send(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/elsewhere\r\nContent-Length: 0\r\n\r\n" % DECOY.port)


def no_http(send: Send, body: bytes) -> None:
    send(b"\x16\x03\x01\x02\x00" + body[:200])


def silent(send: Send, body: bytes) -> None:
    time.sleep(LIMIT_S * 3)


def nested(send: Send, body: bytes) -> None:
    plain(send, b"[" * 300_000)


MANNERS = (
    *[plain] * 24, closing, closing, slow, endless, lying, continuing, headers, redirecting, no_http, silent, nested,
)  # fmt: skip


@dataclass
class Decoy:
    """Where redirects point: nobody may come."""

    port: int = 0
    visits: int = 0


DECOY = Decoy()


class Hostile:
    """One server with one seed; its answers are drawn anew for every request."""

    def __init__(self, seed: int) -> None:
        self._seed, self._asked = seed, dict[str, int]()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=32)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), peer:
            peer.settimeout(10.0)
            path = peer.recv(65536).split(b" ", 2)[1].decode(errors="replace")
            self._asked[path] = self._asked.get(path, 0) + 1
            dice = random.Random(f"{self._seed} {path} {self._asked[path]}")
            dice.choice(MANNERS)(peer.sendall, self._body(path, dice))

    def _body(self, path: str, dice: random.Random) -> bytes:
        if path.startswith("/metrics"):
            text = busy_metrics(dice)
            text = dice.choice([lambda t: t, lambda t: scratched(t, dice), lambda t: numbered(t, dice)])(text)
            return text.encode(errors="replace")
        document = good_info() if "info" in path else json.loads(LOADS)
        if dice.random() < 0.6:
            document = poisoned(document, dice, dice.randrange(1, 12))
        text = json.dumps(document)
        if dice.random() < 0.1:
            text = scratched(text, dice)
        return text.encode(errors="replace")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _decoy() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    DECOY.port = listening.getsockname()[1]

    def count() -> None:
        with contextlib.suppress(OSError):
            while True:
                listening.accept()[0].close()
                DECOY.visits += 1

    threading.Thread(target=count, daemon=True).start()
    return listening


def one_case(seed: int) -> tuple[str, float, float]:
    """Ask one hostile server twice, as the command does; return what came of it, and its seconds by wall and CPU."""
    server = Hostile(seed)
    began, began_cpu = time.monotonic(), time.process_time()
    try:
        live = source.LiveSource(address=Address(host="127.0.0.1", port=server.port, secure=False))
        read = Watch(sources=[live], seconds=0.05 if seed % 2 else 0.0).read()
        answer = look(read, AdviseQuestion())
        encode_json(advise_document(answer), indent=0)
        show_advice(answer, Console(file=io.StringIO(), width=80))
        outcome = "advice" if any(each.model for each in answer.servers) else "no expectation"
    except SgtuneError:
        outcome = "one error"
    finally:
        server.close()
    return outcome, time.monotonic() - began, time.process_time() - began_cpu


def main(arguments: list[str]) -> int:
    """Run the cases; return 1 when one of them broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    source.ANSWER_S = LIMIT_S
    listening = _decoy()
    one_case(options.seed)  # what is loaded at the first use is not the cases'
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outcomes: dict[str, int] = {}
    longest, most_cpu, broken = 0.0, 0.0, 0
    for seed in range(options.seed, options.seed + options.cases):
        try:
            outcome, seconds, cpu = one_case(seed)
        except Exception as error:  # noqa: BLE001  what is looked for
            broken += 1
            sys.stdout.write(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}\n")
            continue
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        longest, most_cpu = max(longest, seconds), max(most_cpu, cpu)
        if seconds > MOST_WALL_S or cpu > MOST_CPU_S:
            broken += 1
            sys.stdout.write(f"seed {seed}: {seconds:.1f} s, {cpu:.1f} of CPU\n")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mib
    listening.close()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    sys.stdout.write(
        f"{options.cases} cases: {counts}; {broken} broken; longest {longest:.1f} s, {most_cpu:.1f} of CPU; "
        f"memory grew {grown:.0f} MiB; {DECOY.visits} redirects followed\n"
    )
    return 1 if broken or DECOY.visits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
