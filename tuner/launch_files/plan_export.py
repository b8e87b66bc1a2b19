"""A plan's candidate as something to export: read from the JSON of `sgtune plan --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import MIB, decode_json, read_bytes
from models.config import ServerConfig
from models.version import parse_version
from planner.fleets.deployment import Role
from planner.launch import typed_launch_spec
from planner.launch_files.fleet import FleetPool, FleetSpec, gpus_of_node, servers_per_node
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.record import Record, RecordedPoint
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.secret_flags import clean_command
from tuner import __version__
from tuner.launch_files.trial_export import Exportable

MOST_PLAN_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    hardware: str
    model: str
    sglang_version: str
    isl: int
    osl: int
    range_ratio: float
    concurrency: int | None = None
    request_rate: float | None = None
    hardware_hash: str = ""
    model_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predicted:
    """A prediction's figures; null is what grows without end."""

    output_tok_s: float
    ttft_ms: dict[str, float | None]
    tpot_ms: dict[str, float]
    band: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    role: Role
    servers: int = 1
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deployment:
    name: str
    pools: tuple[_Pool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    label: str
    argv: tuple[str, ...]
    prediction: _Predicted
    deployment: _Deployment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    replicas: int = 1
    concurrency_per_replica: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlanFile:
    question: _Question
    candidates: tuple[_Candidate, ...]
    answer: _Answer | None = None


def plan_export(
    path: Path, number: int, parameters: Parameters, command: str, model_path: str | None = None
) -> Exportable:
    """Return candidate `number` (from 1, best first) of a plan's JSON, `-` being standard input.

    It serves `model_path`, by default what the plan names. Raises InputError when the file is no plan or has no such
    candidate.
    """
    data = read_bytes(Path("/dev/stdin") if str(path) == "-" else path, "plan", most_bytes=MOST_PLAN_BYTES)
    plan = decode_json(data, _PlanFile, f"{path} (the JSON of sgtune plan --json)")
    if not 1 <= number <= len(plan.candidates):
        has = f"it has 1 to {len(plan.candidates)}" if plan.candidates else "nothing fits that machine"
        raise InputError(f"plan '{path}' has no candidate {number}; {has}")
    candidate = plan.candidates[number - 1]
    config = _config(candidate.argv, plan.question, path)
    version = parse_version(plan.question.sglang_version)
    answer = plan.answer or _Answer()
    served = model_path or plan.question.model_path or plan.question.model
    export_parameters = replace(parameters, replicas=answer.replicas, model_path=served).checked()
    spec = typed_launch_spec(
        config,
        version,
        model_path=export_parameters.model_path,
        host=export_parameters.host,
        port=export_parameters.port,
    )
    spec = spec.with_words(export_parameters.production.words(version, plan.question.model))
    record = _record(candidate, plan.question, answer, config.nnodes)
    lines = (
        ("made by", f"sgtune {__version__}: {clean_command(command)}"),
        *_lines(candidate, number, record),
        *((("servers needed", str(answer.replicas)),) if answer.replicas > 1 else ()),
    )
    document = decode_json(data, dict[str, Any], str(path))
    exportable = Exportable(
        spec=spec,
        provenance=Provenance(lines=lines, record=record),
        parameters=export_parameters,
        documents={"plan.json": document},
    )
    deployment = candidate.deployment
    if deployment is None or sum(pool.servers for pool in deployment.pools) == 1:
        return exportable
    return replace(exportable, fleet=_fleet(deployment, plan.question, export_parameters, path))


def _fleet(deployment: _Deployment, question: _Question, parameters: Parameters, path: Path) -> FleetSpec:
    """Return the pools with the command of one server of each, as the plan's file gives it."""
    version = parse_version(question.sglang_version)
    pools = []
    for pool in deployment.pools:
        config = _config(pool.argv, question, path)
        spec = typed_launch_spec(
            config, version, model_path=parameters.model_path, host=parameters.host, port=parameters.port
        )
        spec = spec.with_words(parameters.production.words(version, question.model))
        per_node = servers_per_node(question.hardware, spec.gpus_per_node)
        pools.append(FleetPool(role=pool.role, servers=pool.servers, spec=spec, per_node=per_node))
    gpus = sum(pool.servers * pool.spec.gpus_per_node * pool.spec.nnodes for pool in pools)
    one_node = len(pools) > 1 and gpus <= gpus_of_node(question.hardware)
    return FleetSpec(name=deployment.name, pools=tuple(pools), one_node=one_node)


def _config(argv: Sequence[str], question: _Question, path: Path) -> ServerConfig:
    version = parse_version(question.sglang_version)
    read = read_arguments(argv, version)
    if read.faults:
        raise InputError(f"plan '{path}': SGLang {version} refuses its flags: {read.faults[0].message}")
    return from_values(read.values, version)


def _lines(candidate: _Candidate, number: int, record: Record) -> list[tuple[str, str]]:
    figure = record.points[0]
    low, high = figure.interval
    return [
        ("SGLang", record.sglang_version),
        ("hardware", f"{record.hardware} (profile {record.hardware_hash or 'unknown'})"),
        ("workload", f"{record.isl} in / {record.osl} out, {figure.load}"),
        ("configuration", f"{candidate.label}, candidate {number} of the plan"),
        ("predicted", f"{figure.output_tok_s:.1f} output tok/s (90 % band {low:.1f} to {high:.1f}); not measured"),
    ]


def _record(candidate: _Candidate, question: _Question, answer: _Answer, nnodes: int) -> Record:
    ttft_mean_ms, (low, high) = candidate.prediction.ttft_ms["mean"], candidate.prediction.band["output_tok_s"]
    if ttft_mean_ms is None or low is None or high is None:
        raise InputError(
            f"{candidate.label} cannot keep up with {question.request_rate or 0.0:g} requests/s: its queue grows "
            "without end and a file could promise no figure; export another candidate (--candidate N) or plan a lower "
            "rate"
        )
    figure = RecordedPoint(
        concurrency=question.concurrency or answer.concurrency_per_replica or 1,
        request_rate=question.request_rate,
        output_tok_s=candidate.prediction.output_tok_s,
        interval=(low, high),
        ttft_mean_ms=ttft_mean_ms,
        tpot_mean_ms=candidate.prediction.tpot_ms["mean"],
    )
    return Record(
        sgtune=__version__,
        sglang_version=question.sglang_version,
        hardware=question.hardware,
        hardware_hash=question.hardware_hash,
        model=question.model,
        isl=question.isl,
        osl=question.osl,
        range_ratio=question.range_ratio,
        basis="predicted",
        points=(figure,),
        nnodes=nnodes,
    )
