"""A server that answers like SGLang where it likes, and otherwise with whatever breaks a client.

For tests and the fuzzer.

python tools/hostile_server.py --seed 3 [--mood NAME]     prints its port, serves until its standard input ends
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB_BYTES = 64 << 20
HOSTILE_VALUES = (
    None, [], {}, "text", -1, 0, 10**25, 1e308, float("nan"), float("inf"), True, "\x1b[31mred\x1b[0m", "[bold]",
    [[[]]], {"a": {"b": []}}, "9" * 5000, "\ud800",
)  # fmt: skip


def event(**meta: object) -> bytes:
    body = json.dumps({"text": "x", "output_ids": [1], "meta_info": meta})
    return b"data: " + body.encode("utf-8", errors="replace") + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Peer:
    """One connection: reads requests, answers each in the server's mood."""

    def __init__(self, sock: socket.socket, dice: random.Random, mood: str | None) -> None:
        self._sock, self._dice, self._mood = sock, dice, mood

    def serve(self) -> None:
        """Answer until the client has enough."""
        with contextlib.suppress(OSError), self._sock:
            self._sock.settimeout(60.0)
            while (request := self._request()) is not None:
                path, body = request
                if path.startswith(("/generate", "/v1/completions", "/v1/chat")):
                    self._generate(body)
                else:
                    self._say(path)

    def _request(self) -> tuple[str, bytes] | None:
        data = b""
        while b"\r\n\r\n" not in data:
            received = self._sock.recv(65536)
            if not received:
                return None
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += self._sock.recv(65536)
        return head.split(b" ", 2)[1].decode(errors="replace"), body

    def _say(self, path: str) -> None:
        """Answer /server_info, /v1/models, /v1/loads and the like: sometimes as asked, sometimes not."""
        value = self._dice.choice(HOSTILE_VALUES)
        answers: dict[str, object] = {
            "/server_info": {"served_model_name": value, "context_length": value, "version": value,
                             "api_key": "secret"},
            "/v1/models": {"data": self._dice.choice([value, [value], [{"id": value, "max_model_len": value}]])},
            "/v1/loads": {"loads": self._dice.choice([value, [value], [{"num_running_reqs": value, "token_usage": value,
                                                                      "speculative": value}]])},
        }  # fmt: skip
        canned = next((answer for name, answer in answers.items() if path.startswith(name)), {})
        text = json.dumps(canned if self._dice.random() < 0.8 else value).encode("utf-8", errors="replace")
        if self._dice.random() < 0.1:
            text = b"[" * 100_000
        status = b"200 OK" if self._dice.random() < 0.8 else b"500 \x1b[2J"
        self._sock.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))

    def _generate(self, body: bytes) -> None:
        moods = MOODS
        name = self._mood or self._dice.choice(list(moods))
        tokens = 8
        with contextlib.suppress(ValueError, KeyError, TypeError):
            tokens = int(json.loads(body)["sampling_params"]["max_new_tokens"])
        moods[name](self._sock.sendall, tokens, self._dice)
        if name != "good":
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)


Send = Callable[[bytes], None]


def good(send: Send, tokens: int, dice: random.Random) -> None:
    send(HEAD)
    for number in range(1, tokens + 1):
        send(chunk(event(prompt_tokens=16, completion_tokens=number, cached_tokens=0)))
        time.sleep(0.002)
    send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def odd_figures(send: Send, tokens: int, dice: random.Random) -> None:
    meta = {name: dice.choice(HOSTILE_VALUES) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
    with contextlib.suppress(ValueError):
        send(HEAD + chunk(event(completion_tokens=1)) + chunk(event(**meta)) + b"0\r\n\r\n")


def not_an_object(send: Send, tokens: int, dice: random.Random) -> None:
    text = dice.choice([b"[]", b"3", b'"x"', b"null", b'{"meta_info": []}', b'{"meta_info": 7}', b"[" * 50_000])
    send(HEAD + chunk(b'data: {"completion_tokens": 2}\n\n') + chunk(b"data: " + text + b"\n\n") + b"0\r\n\r\n")


def endless(send: Send, tokens: int, dice: random.Random) -> None:
    send(HEAD)
    number = 0
    while True:
        number += 1
        send(chunk(event(prompt_tokens=1, completion_tokens=number, cached_tokens=0)) * 50)


def endless_line(send: Send, tokens: int, dice: random.Random) -> None:
    send(HEAD)
    for _ in range(BOMB_BYTES >> 16):
        send(chunk(b"x" * 65536))


def endless_head(send: Send, tokens: int, dice: random.Random) -> None:
    send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(BOMB_BYTES >> 16):
        send(b"X: " + b"y" * 65536)


def drip(send: Send, tokens: int, dice: random.Random) -> None:
    for byte in HEAD + chunk(event(completion_tokens=1)):
        send(bytes([byte]))
        time.sleep(1.0)


def garbage(send: Send, tokens: int, dice: random.Random) -> None:
    send(dice.randbytes(2000))


def bad_chunks(send: Send, tokens: int, dice: random.Random) -> None:
    send(HEAD + dice.choice([b"-5\r\nabc", b"zz\r\n", b"f" * 5000, b"\r\n" * 4000, b"0x5\r\nabcde\r\n", b"1_0\r\n"]))


def bad_length(send: Send, tokens: int, dice: random.Random) -> None:
    length = dice.choice([b"-1", b"abc", b"9" * 400, b"", b"1e3", b"0"])
    send(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + event(completion_tokens=1))


def refuses(send: Send, tokens: int, dice: random.Random) -> None:
    send(b"HTTP/1.1 500 no\r\nContent-Length: 12\r\n\r\n\x1b[31mno!\x07\x00\n\n")


def silent(send: Send, tokens: int, dice: random.Random) -> None:
    time.sleep(5.0)


MOODS: dict[str, Callable[[Send, int, random.Random], None]] = {
    mood.__name__: mood
    for mood in (
        good, odd_figures, not_an_object, endless, endless_line, endless_head, drip, garbage, bad_chunks, bad_length,
        refuses, silent,
    )
}  # fmt: skip


def serve(listener: socket.socket, seed: int, mood: str | None) -> None:
    """Accept for ever, a thread a connection."""
    number = 0
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        number += 1
        peer = Peer(sock, random.Random(f"{seed}/{number}"), mood)
        threading.Thread(target=peer.serve, daemon=True).start()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mood", choices=sorted(MOODS))
    options = parser.parse_args(arguments)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=serve, args=(listener, options.seed, options.mood), daemon=True).start()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
