"""`sgtune bench --traffic`: a running server under a trace, and what its cache hit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwprobe.errors import InputError
from tuner.choices import Backend
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from tuner.bench.requests import StreamProgress

# For the last answers, after the last request is sent.
PATIENCE_S = 600.0
MOST_RATE_SCALE = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchAsked:
    """What was typed: the server, the trace, and how it is sent."""

    url: str
    traffic: Path
    rate_scale: float
    map: list[str] | None
    backend: Backend
    model: str | None
    slo: list[str] | None
    most_s: float
    vocabulary: int
    seed: int
    out: Path | None
    key: str | None = field(repr=False, default=None)


def bench_traffic(typed: BenchAsked, *, json: bool) -> bool:
    """Send the trace, show what came of it; return whether the result can be used.

    Raises InputError for a trace or server that does not go together, SgtuneError where no request succeeds.
    """
    from hwprobe.files import encode_json, write_atomic
    from tuner.cli.views.bench_traffic_view import show_bench_traffic

    document = _measured(typed)
    traffic = document["traffic"]
    if typed.out is not None:
        write_atomic(typed.out, encode_json(document, indent=0) + "\n")
    if json:
        print_json(document)
    else:
        show_bench_traffic(document, console())
    return bool(traffic["verdict"] == "ok")


def _measured(typed: BenchAsked) -> dict[str, Any]:
    from models.workload import Slo
    from tuner.bench.server_side import Address, read_facts
    from tuner.trace_bench.trace_point import TraceSettings, run_trace, trace_point_document, within_time
    from tuner.trace_files.read import read_trace

    if typed.backend is Backend.OPENAI_CHAT:
        raise InputError("--traffic sends token ids, which chats do not take: --backend sglang or openai")
    if not (0.001 <= typed.rate_scale <= MOST_RATE_SCALE):
        raise InputError(f"--rate-scale is {typed.rate_scale:g}; it must be from 0.001 to 1,000")
    slos = tuple(Slo.parse(text) for text in typed.slo or [])
    trace = read_trace(typed.traffic, typed.map or ()).scaled(typed.rate_scale)
    facts = read_facts(Address.parse(typed.url), typed.key)
    model = typed.model or facts.served_model
    if typed.backend is not Backend.SGLANG and not model:
        raise InputError("the server names no model; give it with --model")
    sent = within_time(trace, typed.most_s, facts.context_length)
    settings = TraceSettings(
        backend=typed.backend, model=model or "", vocabulary=typed.vocabulary, seed=typed.seed, most_s=typed.most_s,
        patience_s=PATIENCE_S, key=typed.key, slos=slos,
    )  # fmt: skip
    point = run_trace(typed.url, sent, settings, _watch)
    notes = list(sent.notes)
    if len(sent) < len(trace):
        notes.append(f"sent: the {len(sent):,} of {len(trace):,} requests due within --duration {typed.most_s:g}s")
    return {
        "server": {"model": facts.served_model, "version": facts.version},
        "simulated": facts.simulated,
        "points": [],
        "traffic": {"file": typed.traffic.name, "rate_scale": typed.rate_scale, "slo": [str(slo) for slo in slos],
                    **trace_point_document(point), "notes": notes},
    }  # fmt: skip


def _watch(word: StreamProgress, total: int) -> None:
    screen = console(stderr=True)
    if screen.is_terminal:
        typer.echo(f"\r{word.done} of {total} answered, {word.in_flight} in flight   ", err=True, nl=False)
