"""What the server says of itself beside a point: `/server_info` once, `/v1/loads` every second, cache flushes."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hwprobe.errors import InputError

ANSWER_S = 10.0
FLUSH_TRIES = 50
FLUSH_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read 'http://host:port'. Raises InputError with an example."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.path.strip("/"):
            raise InputError(f"--url is '{url}'; write it as in --url http://127.0.0.1:30000")
        secure = parts.scheme == "https"
        return cls(host=parts.hostname, port=port or (443 if secure else 80), secure=secure)


def ask(
    address: Address, method: str, path: str, *, key: str | None = None, timeout_s: float = ANSWER_S
) -> tuple[int, Any]:
    """Return status and answer (JSON where it is JSON). Raises OSError or HTTPException when there is none."""
    if address.secure:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address.host, address.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        text = response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode(errors="replace")
    finally:
        connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server is, as far as it says: empty for one that is not SGLang."""

    served_model: str
    context_length: int | None
    version: str
    info: dict[str, Any]


def read_facts(address: Address, key: str | None = None) -> ServerFacts:
    """Return what the server says. Raises InputError when nobody answers at the address."""
    try:
        status, info = ask(address, "GET", "/server_info", key=key)
        if status == http.client.NOT_FOUND:
            status, info = ask(address, "GET", "/get_server_info", key=key)
        _, models = ask(address, "GET", "/v1/models", key=key)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"no server answers at {address.host}:{address.port} ({error}); start it, or give its address with --url"
        ) from error
    found = info if status == http.client.OK and isinstance(info, dict) else {}
    listed = models.get("data", []) if isinstance(models, dict) else []
    model = listed[0] if listed else {}
    length = found.get("context_length") or model.get("max_model_len")
    return ServerFacts(
        served_model=str(found.get("served_model_name") or model.get("id") or ""),
        context_length=int(length) if length else None,
        version=str(found.get("version", "")),
        info=found,
    )


def flush_cache(address: Address, key: str | None = None) -> bool:
    """Empty the prefix cache; wait for requests that are still leaving. False where the server cannot."""
    for _ in range(FLUSH_TRIES):
        try:
            status, _ = ask(address, "POST", "/flush_cache", key=key)
        except (OSError, http.client.HTTPException):
            return False
        if status == http.client.OK:
            return True
        if status != http.client.BAD_REQUEST:
            return False
        time.sleep(FLUSH_PAUSE_S)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The server's own figures, means over the window and over its DP ranks' sum; None where it does not say."""

    running: float | None = None
    waiting: float | None = None
    token_usage: float | None = None
    accept_length: float | None = None


def read_load(address: Address, key: str | None = None) -> Load:
    """Return one snapshot of `/v1/loads`."""
    try:
        status, answer = ask(address, "GET", "/v1/loads?include=all", key=key, timeout_s=2.0)
    except (OSError, http.client.HTTPException):
        return Load()
    loads = answer.get("loads", []) if status == http.client.OK and isinstance(answer, dict) else []
    if not loads:
        return Load()
    accepted = [load["speculative"]["accept_length"] for load in loads if load.get("speculative")]
    return Load(
        running=float(sum(load.get("num_running_reqs", 0) for load in loads)),
        waiting=float(sum(load.get("num_waiting_reqs", 0) for load in loads)),
        token_usage=max(float(load.get("token_usage", 0.0)) for load in loads),
        accept_length=sum(accepted) / len(accepted) if accepted else None,
    )


def mean_load(snapshots: list[Load]) -> Load:
    """Return the means of what was said."""

    def mean(name: str) -> float | None:
        said = [value for load in snapshots if (value := getattr(load, name)) is not None]
        return sum(said) / len(said) if said else None

    return Load(**{name: mean(name) for name in Load.__slots__})
