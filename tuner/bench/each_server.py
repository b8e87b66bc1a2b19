"""Servers behind a router, each read beside the total: what one did of a point, and whether it is slow or gone.

A server's own counters on /metrics, read before and after a point (its warm-up among it), say what went through it.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from prometheus_client.parser import text_string_to_metric_families

from hwprobe.errors import InputError
from tuner.bench.server_side import Address, asked
from tuner.server.ask import NO_ANSWER

# A server counts as slow where its tokens take this much longer than the median of the others.
SLOWER = 1.15
LEAST_TOKENS = 50
# What SGLang calls the time between two tokens, the newer name first.
GAPS = ("inter_token_latency_seconds", "time_per_output_token_seconds")


class ServerState(StrEnum):
    """How a server behind a router did."""

    OK = "ok"
    SLOW = "slow"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """A server's counters at a moment (`at_s`, monotonic): seconds are sums over requests or tokens.

    `transfer_ms` and `transfer_gb_s` are sums over `transfers` of a request's KV cache to a decode server.
    """

    at_s: float
    requests: float = 0.0
    output_tokens: float = 0.0
    first_token_s: float = 0.0
    first_tokens: float = 0.0
    gap_s: float = 0.0
    gaps: float = 0.0
    transfers: float = 0.0
    transfer_ms: float = 0.0
    transfer_gb_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerShare:
    """What one server did of a point: requests begun, output tokens a second, mean TTFT and time between tokens.

    Figures are None where the server said nothing of them.
    """

    url: str
    requests: int
    output_tok_s: float
    ttft_ms: float | None
    tpot_ms: float | None
    state: ServerState = ServerState.OK
    why: str = ""
    transfer_ms: float | None = None
    transfer_gb_s: float | None = None


def read_counters(url: str, key: str | None) -> Counters | None:
    """Read /metrics of a server, None where it gives no answer. Raises InputError where it has no metrics."""
    try:
        status, text = asked(Address.parse(url), "GET", "/metrics", key=key)
    except NO_ANSWER:
        return None
    if status != http.client.OK or not isinstance(text, str):
        raise InputError(f"--server {url} shows no /metrics (HTTP {status}): start it with --enable-metrics")
    sums = _sums(text)
    gap = next((name for name in GAPS if f"{name}_count" in sums), GAPS[0])
    return Counters(
        at_s=time.monotonic(),
        requests=sums.get("num_requests_total", 0.0),
        output_tokens=sums.get("generation_tokens_total", 0.0),
        first_token_s=sums.get("time_to_first_token_seconds_sum", 0.0),
        first_tokens=sums.get("time_to_first_token_seconds_count", 0.0),
        gap_s=sums.get(f"{gap}_sum", 0.0),
        gaps=sums.get(f"{gap}_count", 0.0),
        transfers=sums.get("kv_transfer_latency_ms_count", 0.0),
        transfer_ms=sums.get("kv_transfer_latency_ms_sum", 0.0),
        transfer_gb_s=sums.get("kv_transfer_speed_gb_s_sum", 0.0),
    )


def read_all(urls: Sequence[str], key: str | None) -> list[Counters | None]:
    """Read all servers."""
    return [read_counters(url, key) for url in urls]


def shares(
    urls: Sequence[str], before: Sequence[Counters | None], after: Sequence[Counters | None]
) -> tuple[ServerShare, ...]:
    """Return what each server did between two readings; the slow ones and those that are gone are marked."""
    server_shares = [_share(*readings) for readings in zip(urls, before, after, strict=True)]
    paces = [share.tpot_ms for share in server_shares]
    return tuple(
        _judged(share, [p for i, p in enumerate(paces) if i != at and p]) for at, share in enumerate(server_shares)
    )


def _share(url: str, before: Counters | None, after: Counters | None) -> ServerShare:
    if before is None or after is None:
        when = "before the point" if before is None else "after the point"
        return ServerShare(
            url=url, requests=0, output_tok_s=0.0, ttft_ms=None, tpot_ms=None, state=ServerState.LOST,
            why=f"it gave no answer {when}",
        )  # fmt: skip
    if after.output_tokens < before.output_tokens:
        before = Counters(at_s=before.at_s)  # it was started anew meanwhile
    firsts, gaps = after.first_tokens - before.first_tokens, after.gaps - before.gaps
    transfers = after.transfers - before.transfers
    return ServerShare(
        url=url,
        requests=round(after.requests - before.requests),
        output_tok_s=(after.output_tokens - before.output_tokens) / max(1e-9, after.at_s - before.at_s),
        ttft_ms=1e3 * (after.first_token_s - before.first_token_s) / firsts if firsts > 0 else None,
        tpot_ms=1e3 * (after.gap_s - before.gap_s) / gaps if gaps >= LEAST_TOKENS else None,
        transfer_ms=(after.transfer_ms - before.transfer_ms) / transfers if transfers > 0 else None,
        transfer_gb_s=(after.transfer_gb_s - before.transfer_gb_s) / transfers if transfers > 0 else None,
    )


def _judged(share: ServerShare, others: Sequence[float]) -> ServerShare:
    if share.state is not ServerState.OK or share.tpot_ms is None or not others:
        return share
    usual = statistics.median(others)
    if share.tpot_ms <= SLOWER * usual:
        return share
    why = f"{share.tpot_ms:.1f} ms between tokens, the others {usual:.1f} ({share.tpot_ms / usual - 1.0:+.0%})"
    return replace(share, state=ServerState.SLOW, why=why)


def _sums(text: str) -> dict[str, float]:
    """Return the sum over all labels of every counter, and of every histogram's sum and count, without SGLang's prefix.

    Raises InputError for what is no exposition.
    """
    sums: dict[str, float] = {}
    for name, value in _samples(text):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def _samples(text: str) -> Iterator[tuple[str, float]]:
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield sample.name.removeprefix("sglang:").removeprefix("sglang_"), sample.value
    except ValueError as error:
        raise InputError(f"/metrics cannot be read: {error}") from error
