"""A trace, or what `sgtune traffic` or `sgtune plan --traffic` printed of one, as its page looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dashboard.readers.roots import file_within_roots, roots
from hwprobe.errors import InputError
from hwprobe.files import read_bytes
from hwprobe.parsing import ODD
from models.traffic.summary import summary
from models.version import NEWEST
from planner.inputs import read_question
from planner.traffic_plans.plan_document import traffic_plan_document
from planner.traffic_plans.sizing import plan_traffic, traffic_question
from tuner.trace_files.read import read_trace
from tuner.trace_files.summary_page import traffic_document

# A page shall not read for minutes; the command has time.
MOST_TRACE_BYTES, MOST_DOCUMENT_BYTES = 64 << 20, 32 << 20
MOST_LISTED = 50
SUFFIXES = (".jsonl", ".csv", ".json")
Shown = TypeVar("Shown", bound=msgspec.Struct)


class LengthSpread(msgspec.Struct, frozen=True):
    """Mean and percentiles of a length in tokens, or of turns."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class ArrivalBins(msgspec.Struct, frozen=True):
    """How requests come: `bins` counts them by `bin_s` seconds."""

    mean_rate: float
    busiest_minute_rate: float
    gap_cv: float
    bin_s: float
    bins: list[int]


class HitPoint(msgspec.Struct, frozen=True):
    """The share of prompt tokens that a cache of so many tokens hits."""

    cache_tokens: int
    hit_rate: float


class Summary(msgspec.Struct, frozen=True):
    """What a trace holds: the document of `sgtune traffic --json`."""

    form: str
    requests: int
    duration_s: float
    sessions: int
    turns: LengthSpread
    input_tokens: LengthSpread
    output_tokens: LengthSpread
    shared_tokens: LengthSpread
    arrivals: ArrivalBins
    prefix_hit_rate: float
    hit_curve: list[HitPoint]
    notes: list[str] = []


class ServedMinute(msgspec.Struct, frozen=True):
    """One minute of a plan: what was sent in it and what became of it."""

    minute: int
    requests: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    waiting: float
    hit_rate: float
    missed_share: float


class _Answer(msgspec.Struct, frozen=True):
    deployment: str
    servers: int
    hit_rate: float
    kv_tokens: float = 0.0


class _Asked(msgspec.Struct, frozen=True):
    traffic: str
    hardware: str
    slo: list[str]
    rate_scale: float = 1.0


class _Minutes(msgspec.Struct, frozen=True):
    minutes: list[ServedMinute]
    requests: int


class ServedPlan(msgspec.Struct, frozen=True):
    """A plan for a trace: of the document of `sgtune plan --traffic --json` what the page shows."""

    question: _Asked
    meets_target: bool
    answer: _Answer | None
    traffic: _Minutes

    @property
    def minutes_over(self) -> int:
        """Minutes in which a request is above a limit."""
        return sum(minute.missed_share > 0.0 for minute in self.traffic.minutes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficView:
    """What a file says: a trace's summary, a plan for one, or both. `is_trace`: it can be planned for."""

    name: str
    path: Path
    summary: Summary | None
    plan: ServedPlan | None
    is_trace: bool


def listed() -> list[str]:
    """Return files that may be traces: those that lie in a root itself, by name."""
    names = {
        str(path.relative_to(root) if root == Path.cwd().resolve() else path)
        for root in roots()
        if root.is_dir()
        for path in root.iterdir()
        if path.suffix in SUFFIXES and path.is_file()
    }
    return sorted(names)[:MOST_LISTED]


def view_of(name: str) -> TrafficView:
    """Return what a file says, from the cache while it is the same. Raises InputError for one that is neither."""
    path = Path(file_within_roots(name))
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{path.name}': {getattr(error, 'strerror', None) or error}") from error
    return _view(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=16)
def _view(path: Path, written_ns: int, size: int) -> TrafficView:
    document = _document(path, size)
    if document is not None:
        return document
    if size > MOST_TRACE_BYTES:
        raise InputError(
            f"'{path.name}' holds {size >> 20:,} MiB, a page reads {MOST_TRACE_BYTES >> 20} MiB: write its summary "
            "with `sgtune traffic FILE --json > traffic.json` and open that"
        )
    shown = msgspec.convert(traffic_document(summary(read_trace(path))), Summary)
    return TrafficView(name=path.name, path=path, summary=shown, plan=None, is_trace=True)


def _document(path: Path, size: int) -> TrafficView | None:
    """Return what sgtune printed, None where the file is none of that."""
    if path.suffix != ".json" or size > MOST_DOCUMENT_BYTES:
        return None
    try:
        document = msgspec.json.decode(read_bytes(path, "traffic document", most_bytes=MOST_DOCUMENT_BYTES))
    except ODD:
        return None
    if not isinstance(document, dict):
        return None
    if "hit_curve" in document:
        shown = _converted(document, Summary, path)
        return TrafficView(name=path.name, path=path, summary=shown, plan=None, is_trace=False)
    if "traffic" in document and "question" in document:
        return TrafficView(
            name=path.name, path=path, summary=None, plan=_converted(document, ServedPlan, path), is_trace=False
        )
    return None


def _converted(document: dict[str, Any], kind: type[Shown], path: Path) -> Shown:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"'{path.name}' is not what sgtune traffic or plan --traffic prints: {error}") from error


def served_plan(view: TrafficView, hardware: str, slos: tuple[str, ...], rate_scale: float) -> ServedPlan:
    """Plan a trace on a machine, from the cache when it was asked before. Raises InputError as the command does."""
    return _served(view.path, view.path.stat().st_mtime_ns, hardware, slos, rate_scale)


@lru_cache(maxsize=16)
def _served(path: Path, written_ns: int, hardware: str, slos: tuple[str, ...], rate_scale: float) -> ServedPlan:
    trace = read_trace(path)
    mean_isl, mean_osl = (max(1, round(float(column.mean()))) for column in (trace.isl, trace.osl))
    question = read_question(
        hardware=hardware, model=None, sglang_version=NEWEST, slo=list(slos), profile=None, isl=mean_isl, osl=mean_osl,
        concurrency=1,
    )  # fmt: skip
    answer = plan_traffic(question, traffic_question(trace, path.name, rate_scale, question.slos))
    return _converted(traffic_plan_document(answer), ServedPlan, path)
