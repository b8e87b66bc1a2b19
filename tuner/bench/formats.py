"""Measured points as lines of JSON: in sgtune's own record format, and in that of sglang.benchmark.serving."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from tuner.bench.point import MeasuredPoint
from tuner.bench.requests import Seen
from tuner.bench.server_side import ServerFacts
from tuner.bench.window import tpot_s
from tuner.choices import Arrival

# What a record needs of the server, by SGLang's name for it.
FROM_SERVER = {
    "tp": "tp_size", "attn_dp": "attn_dp_size", "ep": "ep_size", "pp": "pp_size", "kv_dtype": "kv_cache_dtype",
    "mem_fraction_static": "mem_fraction_static", "max_total_num_tokens": "max_total_num_tokens",
    "engine_version": "version", "attention_backend": "attention_backend", "mtp_steps": "speculative_num_steps",
}  # fmt: skip


def point_document(point: MeasuredPoint) -> dict[str, Any]:
    """Return a point as `bench --json` shows it; latencies in ms."""
    window, workload = point.window, point.workload
    closed = point.settings.arrival is Arrival.CLOSED
    return {
        "concurrency": workload.concurrency if closed else None,
        "request_rate": None if closed else point.settings.request_rate,
        "achieved_in_flight": window.in_flight,
        "requests": window.requests,
        "errors": window.errors,
        "unended": window.unended,
        "duration_s": window.seconds,
        "warm_up_s": point.warm_up_s,
        "output_tok_s": window.output_tok_s,
        "output_tok_s_interval": window.output_tok_s_interval,
        "total_tok_s": window.total_tok_s,
        "completed_per_s": window.request_rate,
        "goodput_rps": window.goodput_rps,
        "ttft_ms": window.ttft.by,
        "ttft_mean_interval_ms": window.ttft.mean_interval,
        "tpot_ms": window.tpot.by,
        "tpot_mean_interval_ms": window.tpot.mean_interval,
        "e2e_ms": window.e2e.by,
        "chunk_gap_ms": window.chunk_gap.by,
        "tokens_per_chunk": window.tokens_per_chunk,
        "cached_share": window.cached_share,
        "flushed": point.flushed,
        "server": msgspec.to_builtins(point.server),
        "client": {
            "sent_late_p99_ms": window.generator.sent_late_p99_ms,
            "loop_lag_p99_ms": window.generator.loop_lag_p99_ms,
            "cpu_share": window.generator.cpu_share,
            "cpu_s_per_1000_tokens": window.generator.cpu_s_per_1000_tokens,
        },
        "verdict": str(point.verdict),
        "why": point.why,
    }


def point_record(point: MeasuredPoint, facts: ServerFacts, isl: int, osl: int, name: str) -> dict[str, Any]:
    """Return a point as a record that predict, calibrate and validate read."""
    window = point.window
    closed = point.settings.arrival is Arrival.CLOSED
    server = {field: facts.info.get(theirs) for field, theirs in FROM_SERVER.items()}
    return {
        "id": name,
        "engine": "sglang",
        **({"simulated": True} if facts.simulated else {}),
        **{field: value for field, value in server.items() if value is not None},
        "metric_kind": "serving",
        "isl": isl,
        "osl": osl,
        "range_ratio": point.workload.isl.range_ratio,
        "concurrency": point.workload.concurrency if closed else None,
        "request_rate": None if closed else point.settings.request_rate,
        "accept_length": point.server.accept_length,
        "ttft_mean_ms": window.ttft.by["mean"],
        "ttft_median_ms": window.ttft.by["p50"],
        "tpot_mean_ms": window.tpot.by["mean"],
        "tpot_median_ms": window.tpot.by["p50"],
        "output_tok_s": window.output_tok_s,
        "verdict": str(point.verdict),
        "bench": point_document(point),
    }


def sglang_record(point: MeasuredPoint, facts: ServerFacts, isl: int, osl: int, tag: str) -> dict[str, Any]:
    """Return a point in the fields of `sglang.benchmark.serving --output-file`, over our steady window."""
    window = point.window
    counted = in_window(point)
    closed = point.settings.arrival is Arrival.CLOSED
    record: dict[str, Any] = {
        "tag": tag,
        "backend": str(point.settings.backend),
        "dataset_name": "custom" if point.settings.prompts else "random-ids",
        "request_rate": "inf" if closed else point.settings.request_rate,
        "max_concurrency": point.workload.concurrency if closed else None,
        "random_input_len": isl,
        "random_output_len": osl,
        "random_range_ratio": point.workload.isl.range_ratio,
        "server_info": facts.info,
        "duration": window.seconds,
        "completed": len(counted),
        "total_input_tokens": sum(item.prompt_tokens or item.isl for item in counted),
        "total_output_tokens": sum(item.tokens for item in counted),
        "request_throughput": window.request_rate,
        "input_throughput": window.total_tok_s - window.output_tok_s,
        "output_throughput": window.output_tok_s,
        "total_throughput": window.total_tok_s,
        "concurrency": window.in_flight,
        "accept_length": point.server.accept_length,
    }
    latencies = {
        "ttft": [item.first - item.sent for item in counted],
        "tpot": [tpot_s(item) for item in counted if item.tokens > 1],
        "e2e_latency": [item.last - item.sent for item in counted],
    }
    for name, seconds in latencies.items():
        record |= _statistics(name, np.array(seconds or [0.0]) * 1e3)
    return record


def _statistics(name: str, ms: np.ndarray) -> dict[str, float]:
    return {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
        **{f"p{p}_{name}_ms": float(np.percentile(ms, p)) for p in (90, 95, 99)},
    }


def in_window(point: MeasuredPoint) -> list[Seen]:
    """Return the requests that succeeded and count in the window, in the order they ended."""
    counted = [
        request
        for outcome in point.outcomes
        for request in outcome.seen
        if not request.error and point.window.has(request)
    ]
    return sorted(counted, key=lambda request: request.ended)


def request_lines(point: MeasuredPoint) -> str:
    """Return every request of the point, warm-up too, one JSON line each; times in seconds since the first."""
    everything = sorted(
        (request for outcome in point.outcomes for request in outcome.seen), key=lambda request: request.sent
    )
    if not everything:
        return ""
    origin, window = everything[0].sent, point.window
    lines = []
    for request in everything:
        lines.append(
            json.dumps(
                {
                    "planned_s": round(request.planned - origin, 6),
                    "sent_s": round(request.sent - origin, 6),
                    "ttft_ms": round((request.first - request.sent) * 1e3, 3),
                    "tpot_ms": round(tpot_s(request) * 1e3, 4) if request.tokens > 1 else None,
                    "e2e_ms": round((request.ended - request.sent) * 1e3, 3),
                    "prompt_tokens": request.prompt_tokens or request.isl,
                    "output_tokens": request.tokens,
                    "cached_tokens": request.cached,
                    "chunks": request.chunks,
                    "error": request.error or None,
                    "in_window": window.has(request),
                    "concurrency": point.workload.concurrency,
                }
            )
        )
    return "\n".join(lines) + "\n"


def json_lines(records: Sequence[dict[str, Any]]) -> str:
    """Return records as lines."""
    return "".join(json.dumps(record) + "\n" for record in records)
