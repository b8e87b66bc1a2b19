"""One question to a server over HTTP, answered in bounded time and memory, even by a hostile server."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwprobe.errors import InputError
from hwprobe.parsing import load_json
from planner.sglang.secret_flags import HIDDEN, SECRET_FIELDS

# SGLang's /server_info is some tens of KiB.
MOST_ANSWER_BYTES = 4 << 20
LARGEST = 1e15  # beyond any count a server could mean, below where a float stops counting
# What an unreachable or broken server makes of a question.
NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request to a server; `body` is sent as JSON."""

    host: str
    port: int
    secure: bool = False
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


def ask(request: HttpRequest, timeout_s: float, *, most_bytes: int = MOST_ANSWER_BYTES) -> tuple[int, bytes]:
    """Return status and body. Raises one of NO_ANSWER; TimeoutError when not all of it is there in time.

    A socket's own timeout starts anew with every byte, so a clock of ours ends the connection. No redirect is
    followed: its status is what is returned.
    """
    host, port = request.host, request.port
    if request.secure:
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    late = threading.Event()
    opened = contextlib.ExitStack()
    sockets: list[socket.socket] = []  # the connection itself lets go of it once an answer says "Connection: close"

    def end() -> None:
        late.set()
        for sock in (*sockets, *([connection.sock] if connection.sock is not None else [])):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    clock = threading.Timer(timeout_s, end)
    clock.daemon = True
    clock.start()
    try:
        connection.connect()
        sockets.append(connection.sock)
        data = None if request.body is None else json.dumps(request.body)
        headers = {"Content-Type": "application/json", **request.headers}
        connection.request(request.method, request.path, body=data, headers=headers)
        response = opened.enter_context(connection.getresponse())
        text = response.read(most_bytes + 1)
        if late.is_set():
            raise TimeoutError(f"no whole answer within {timeout_s:g} s")
        if len(text) > most_bytes:
            raise ValueError(f"the answer to {request.path} is larger than {most_bytes >> 20} MiB")
        return response.status, text
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError(f"no whole answer within {timeout_s:g} s") from error
        raise
    finally:
        clock.cancel()
        opened.close()
        connection.close()
        for sock in sockets:
            sock.close()


def json_answer(text: bytes) -> Any:
    """Return an answer as JSON, {} for an empty one. Raises ValueError for anything else."""
    if not text.strip():
        return {}
    try:
        return load_json(text, "the answer")
    except InputError as error:
        raise ValueError(str(error)) from error


def mapping(value: Any) -> dict[str, Any]:
    """Return what a server gave as an object, {} for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a server's list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Return what a server gave as a number, None for anything else: of another type, infinite, out of reach."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return float(value)


def without_secret_fields(info: dict[str, Any]) -> dict[str, Any]:
    """Return a server's info with its keys and passwords hidden."""
    return {name: HIDDEN if name in SECRET_FIELDS and value else value for name, value in info.items()}


def count(value: Any) -> int | None:
    """Return what a server gave as a number of things, None for anything else."""
    counted = number(value)
    return None if counted is None or counted < 0 else int(counted)
