"""Cases from files: point records, lines of SGLang's own benchmark, or a run folder of the tuner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from hwprobe.errors import InputError
from models.architecture import ModelArchitecture, deepseek_r1
from models.engine.profile import EngineProfile
from models.engine.versions import profile_for
from models.layout import table_of
from models.machine import Machine, machine_of
from models.records.case import STEADY_REQUESTS_PER_CLIENT, Case, Run
from models.records.points import Point, parse_point, read_lines
from models.serving.estimate import Context, acceptance_of
from models.workload import Workload
from planner.fleets.deployment import Deployment
from planner.pool_case import record_case

if TYPE_CHECKING:
    from tuner.evidence.trial import TrialRecord
    from tuner.seam import Measurement


# A profile is learned from a run's first and best trials: the others add too little for their time.
MOST_FIRST, MOST_BEST = 3, 5
ENOUGH = "of trials and loads in between: the first trials and the best teach"
NO_EQUATION = "of trials that move what no equation prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Values from the command line for records that lack them."""

    machine: Machine | None = None
    version: str | None = None
    launch_args: str | None = None
    engine: EngineProfile | None = None
    arch: ModelArchitecture | None = None

    def applied(self, point: Point) -> Point:
        """Return the point with its missing fields filled in."""
        args = self.launch_args if point.launch_args is None else point.launch_args
        return replace(point, engine_version=point.engine_version or self.version, launch_args=args)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCase:
    """One record: its id, and its case or its error. `role` is the record's own.

    `simulated`: a world was played, no machine was measured. `left_out`: why it is predicted but not learned from.
    """

    id: str
    case: Case | None = None
    error: str | None = None
    role: str = "primary"
    simulated: bool = False
    left_out: str = ""


def read_cases(source: Path, setting: Setting) -> Iterator[RecordCase]:
    """Yield the records of a file or run folder, in order. Raises InputError if the source cannot be read."""
    if source.is_dir():
        yield from _of_run(source, setting)
        return
    for number, line in read_lines(source):
        yield _of_line(line, number, setting)


def _of_line(line: str, number: int, setting: Setting) -> RecordCase:
    name = f"line-{number}"
    try:
        point = setting.applied(parse_point(line, number))
        name = point.id
        machine = None if point.gpu else setting.machine
        case = record_case(point, setting.engine, setting.arch, machine)
        return RecordCase(id=name, case=case, role=point.role, simulated=point.extra.get("simulated") is True)
    except InputError as error:
        return RecordCase(id=name, error=str(error))


def _of_run(folder: Path, setting: Setting) -> Iterator[RecordCase]:
    """Every point of every measured trial: its configuration is known exactly."""
    from tuner.evidence.run_folder import read_manifest  # not loaded for files of records
    from tuner.evidence.trial_lines import read_trials

    manifest = read_manifest(folder)
    from hwprobe.profile import load_profile

    if manifest.servers is not None:
        raise InputError(f"{folder} launched whole deployments, which say nothing of one server alone")
    arch = setting.arch or deepseek_r1()
    if manifest.model != arch.name:
        raise InputError(
            f"{folder} was measured with {manifest.model}, not with {arch.name}: name its config.json with --model"
        )
    machine = setting.machine or machine_of(load_profile(folder / "hardware.json"))
    version = Version(manifest.sglang_version)
    engine = setting.engine or profile_for(version)
    context = Context(arch=arch, machine=machine, engine=engine, version=version, acceptance=acceptance_of(engine))
    workload = Workload.checked(manifest.isl, manifest.osl, 1, manifest.range_ratio)
    records = read_trials(folder / "trials.jsonl")
    teach = [id(point) for _, point in teaching_points(records)]
    for record in records:
        for point in usable_points(record):
            case = trial_case(record, point, workload, context)
            why = "" if id(point) in teach else NO_EQUATION if record.unpriced else ENOUGH
            yield RecordCase(id=case.id, case=case, simulated=manifest.simulated, left_out=why)


def teaching_points(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, Measurement]]:
    """Return the points of a run that a profile is learned from, in order: the lightest and the decisive load.

    They are of the first trials, which are spread, and of the best; trials with unmodelled flags are left out. A second
    launch belongs to its first.
    """
    priced = [record for record in records if usable_points(record) and not record.unpriced]
    first = [record for record in priced if record.repeats is None]
    best = sorted(first, key=lambda record: -record.objective)
    taught_numbers = {record.number for record in (*first[:MOST_FIRST], *best[:MOST_BEST])}
    teaching = []
    for record in priced:
        if record.number in taught_numbers or record.repeats in taught_numbers:
            points = usable_points(record)
            teaching += [(record, point) for point in points if point is points[0] or point == record.target]
    return teaching


def usable_points(record: TrialRecord) -> list[Measurement]:
    """Return the points of a trial that a model of closed loops has figures for; of whole deployments none."""
    if isinstance(record.deployment, Deployment):
        return []
    return [point for point in record.points if str(point.verdict) == "ok" and point.request_rate is None]


def trial_case(record: TrialRecord, point: Measurement, workload: Workload, context: Context) -> Case:
    """Return one measured point of a trial as a case; of the workload only the lengths count."""
    run = Run(
        kind="steady",  # the tuner measures after a warm-up: no first wave
        isl=workload.isl,
        osl=workload.osl,
        concurrency=point.concurrency,
        requests=STEADY_REQUESTS_PER_CLIENT * point.concurrency,
    )
    measured = {
        "ttft_mean_ms": point.ttft_ms["mean"],
        "tpot_mean_ms": point.tpot_ms["mean"],
        "output_tok_s": point.output_tok_s,
    }
    return Case(
        id=f"trial-{record.number}-c{point.concurrency}",
        context=context,
        config=record.config,
        run=run,
        kv_tokens=float(context.memory(table_of([record.config])).kv_tokens[0]),
        kv_known=False,
        acceptance_known=record.config.speculative is None,
        measured={metric: value for metric, value in measured.items() if value > 0},
    )
