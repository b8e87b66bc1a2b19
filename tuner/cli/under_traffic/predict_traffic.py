"""`sgtune predict --traffic`: what one launch line would do under a trace."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprobe.errors import InputError
from tuner.cli.common.terminal import console

if TYPE_CHECKING:
    from models.config import ServerConfig
    from models.serving.estimate import Context
    from planner.traffic_plans.served import ServedTrace
    from planner.traffic_plans.sizing import TrafficQuestion

MOST_REPLICAS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchAsked:
    """What was typed: the trace, and the launch that is to serve it."""

    traffic: Path
    rate_scale: float
    map: list[str] | None
    replicas: int
    slo: list[str] | None
    hardware: str | None
    sglang_version: str | None
    launch_args: str | None
    profile: Path | None
    model: Path | None


def predict_traffic(typed: LaunchAsked, out: Path | None) -> None:
    """Predict and write a line of JSON, or show it. Raises InputError for a launch that SGLang refuses."""
    from hwprobe.files import encode_json, write_atomic

    context, config, warnings = _launch(typed)
    question, served = served_under(typed, context, config)
    document = _document(typed, context, config, question, served)
    document["warnings"] = [*context.engine.warnings, *warnings, *question.trace.notes]
    if out is not None:
        write_atomic(out, encode_json(document, indent=0) + "\n")
    else:
        _show(document, served)


def served_under(typed: LaunchAsked, context: Context, config: ServerConfig) -> tuple[TrafficQuestion, ServedTrace]:
    """Replay the trace on the launch."""
    from models.workload import Slo
    from planner.traffic_plans.served import on, serve, servers_of
    from planner.traffic_plans.sizing import traffic_question
    from tuner.trace_files.read import read_trace

    if typed.replicas > MOST_REPLICAS:
        raise InputError(f"--replicas is {typed.replicas}; it must be from 1 to {MOST_REPLICAS}")
    slos = tuple(Slo.parse(text) for text in typed.slo or [])
    trace = read_trace(typed.traffic, typed.map or ())
    question = traffic_question(trace, typed.traffic.name, typed.rate_scale, slos)
    servers = servers_of(context, config, len(question.trace))
    longest = int((question.trace.isl + question.trace.osl).max())
    if longest > servers.limits.kv_tokens / servers.times.ranks:
        raise InputError(
            f"{typed.traffic} has a request of {longest:,} tokens; a rank of this launch holds "
            f"{servers.limits.kv_tokens // servers.times.ranks:,} KV tokens"
        )
    return question, serve(context, config, question.trace, on(servers, typed.replicas), question.slos)


def _launch(typed: LaunchAsked) -> tuple[Context, ServerConfig, list[str]]:
    """Return what the launch line resolves to. Raises InputError where SGLang refuses it."""
    from planner.check.judge import check_arguments
    from planner.inputs import read_question
    from planner.violation import Severity

    if typed.hardware is None:
        raise InputError("--traffic is served by a machine: name it with --hardware")
    question = read_question(
        hardware=typed.hardware, model=typed.model, sglang_version=typed.sglang_version or "newest", slo=None,
        profile=typed.profile, isl=1, osl=1, concurrency=1,
    )  # fmt: skip
    context = question.context()
    gpus = context.machine.gpu_count
    words = shlex.split(typed.launch_args or f"--tp {gpus}")
    if not any(word.startswith("--model") for word in words):
        words = ["--model-path", "deepseek-ai/DeepSeek-R1", *words]
    checked = check_arguments(words, context.arch, context.machine, context.version)
    wrong = [item for item in (*checked.arguments.faults, *checked.violations) if item.severity is Severity.ERROR]
    if wrong:
        raise InputError(f"--launch-args: SGLang does not run with them: {wrong[0].message}; {wrong[0].fix}")
    config = checked.resolved.config
    if config.flag("disaggregation_mode", "null") != "null":
        raise InputError("--launch-args: prefill and decode apart are not modelled under --traffic")
    warnings = []
    if config.flag("enable_hierarchical_cache"):
        warnings.append("HiCache is not modelled: hits are those of the GPU's cache alone")
    return context, config, warnings


def _document(
    typed: LaunchAsked, context: Context, config: ServerConfig, question: TrafficQuestion, served: ServedTrace
) -> dict[str, Any]:
    from models.layout import table_of

    return {
        "id": typed.traffic.name,
        "ttft_mean_ms": served.ttft_ms["mean"],
        "ttft_median_ms": served.ttft_ms["p50"],
        "ttft_p99_ms": served.ttft_ms["p99"],
        "tpot_mean_ms": served.tpot_ms["mean"],
        "tpot_median_ms": served.tpot_ms["p50"],
        "output_tok_s": served.output_tok_s,
        "goodput_rps": served.goodput_rps,
        "hit_rate": served.hit_rate,
        "replicas": served.servers,
        "requests": len(question.trace),
        "requests_in_all": question.requests_in_all,
        "kv_tokens": int(context.memory(table_of([config])).kv_tokens[0]),
        "retractions": served.retractions,
        "minutes": [asdict(minute) for minute in served.minutes],
        "profile": context.engine.name,
    }


def _show(document: dict[str, Any], served: ServedTrace) -> None:
    from tuner.cli.views.traffic_plan_view import counted, show_minutes

    screen = console()
    screen.print(
        f"{counted(document['requests'], 'request')} on {counted(served.servers, 'server')}: "
        f"TTFT {document['ttft_mean_ms']:,.0f} ms mean, "
        f"{document['ttft_p99_ms']:,.0f} ms p99; TPOT {document['tpot_mean_ms']:,.1f} ms mean; "
        f"{document['output_tok_s']:,.0f} output tok/s; {document['hit_rate']:.1%} of the prompts hit",
        markup=False,
    )
    show_minutes(served.minutes, screen)
    for warning in document["warnings"]:
        screen.print(f"note: {warning}", markup=False)
