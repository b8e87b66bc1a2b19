"""The server's own figures of a point: `/server_info` once, `/v1/loads` every second, cache flushes."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hwprobe.errors import InputError
from hwprobe.plain_text import one_line
from tuner.server.ask import (
    NO_ANSWER,
    HttpRequest,
    ask,
    count,
    items,
    json_answer,
    mapping,
    number,
    without_secret_fields,
)

ANSWER_S = 10.0
FLUSH_TRIES = 50
FLUSH_PAUSE_S = 0.1
LONGEST_URL = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read 'http://host:port'. Raises InputError with an example."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise InputError(f"--url is '{one_line(url)}'; write it as in --url http://127.0.0.1:30000") from None
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.path.strip("/")
            or len(url) > LONGEST_URL
        ):
            raise InputError(f"--url is '{one_line(url)}'; write it as in --url http://127.0.0.1:30000")
        secure = parts.scheme == "https"
        return cls(host=parts.hostname, port=port or (443 if secure else 80), secure=secure)


def asked(
    address: Address, method: str, path: str, *, key: str | None = None, timeout_s: float = ANSWER_S
) -> tuple[int, Any]:
    """Return status and answer (JSON where it is JSON). Raises one of NO_ANSWER when the server gives no answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = HttpRequest(
        host=address.host, port=address.port, secure=address.secure, method=method, path=path, headers=headers
    )
    status, text = ask(request, timeout_s)
    try:
        return status, json_answer(text)
    except ValueError:
        return status, text.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server is, as far as it says: empty for one that is not SGLang."""

    served_model: str
    context_length: int | None
    version: str
    info: dict[str, Any]

    @property
    def simulated(self) -> bool:
        """Whether it is sgtune's emulated server: its figures describe a world, not a machine."""
        return self.info.get("simulated") is True


def read_facts(address: Address, key: str | None = None) -> ServerFacts:
    """Return the server's own figures. Raises InputError when the address does not answer."""
    try:
        status, info = asked(address, "GET", "/server_info", key=key)
        if status == http.client.NOT_FOUND:
            status, info = asked(address, "GET", "/get_server_info", key=key)
        _, models = asked(address, "GET", "/v1/models", key=key)
    except NO_ANSWER as error:
        raise InputError(
            f"no server answers at {address.host}:{address.port} ({one_line(str(error))}); start it, or give its "
            "address with --url"
        ) from error
    server_info = without_secret_fields(mapping(info)) if status == http.client.OK else {}
    model = next(iter(items(mapping(models).get("data"))), {})
    return ServerFacts(
        served_model=one_line(str(server_info.get("served_model_name") or model.get("id") or "")),
        context_length=count(server_info.get("context_length")) or count(model.get("max_model_len")),
        version=one_line(str(server_info.get("version", ""))),
        info=server_info,
    )


def flush_cache(address: Address, key: str | None = None) -> bool:
    """Empty the prefix cache; wait for requests that are still leaving. False where the server cannot."""
    for _ in range(FLUSH_TRIES):
        try:
            status, _ = asked(address, "POST", "/flush_cache", key=key)
        except NO_ANSWER:
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
    """Return one snapshot of `/v1/loads`; figures that are not numbers stay None."""
    try:
        status, answer = asked(address, "GET", "/v1/loads?include=all", key=key, timeout_s=2.0)
    except NO_ANSWER:
        return Load()
    loads = items(mapping(answer).get("loads")) if status == http.client.OK else []
    accepted = [number(mapping(load.get("speculative")).get("accept_length")) for load in loads]
    accept_lengths = [length for length in accepted if length is not None]
    usages = [usage for load in loads if (usage := number(load.get("token_usage"))) is not None]
    return Load(
        running=_total(loads, "num_running_reqs"),
        waiting=_total(loads, "num_waiting_reqs"),
        token_usage=max(usages, default=None),
        accept_length=sum(accept_lengths) / len(accept_lengths) if accept_lengths else None,
    )


def _total(loads: list[dict[str, Any]], name: str) -> float | None:
    """Return the sum over the ranks that report the figure."""
    values = [value for load in loads if (value := number(load.get(name, 0))) is not None]
    return sum(values) if values else None


def mean_load(snapshots: list[Load]) -> Load:
    """Return the means of the reported figures."""

    def mean(name: str) -> float | None:
        values = [value for load in snapshots if (value := getattr(load, name)) is not None]
        return sum(values) / len(values) if values else None

    return Load(**{name: mean(name) for name in Load.__slots__})
