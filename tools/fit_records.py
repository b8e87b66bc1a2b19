"""Which published records the engine profiles are fitted to, and how far each is believed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from packaging.version import Version

from hwprobe.errors import InputError
from models.engine.profile import FAMILIES, EngineProfile
from models.records.case import Case
from models.records.points import METRICS, Point, parse_point, read_lines
from models.version import OLDEST
from planner.point_case import case_of

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "models" / "data" / "published_points.jsonl"
# The founding case is shown beside predictions, never fitted.
FOUNDING_GPU = "141GB-4.8TBs (unnamed)"
FAMILY_OF_GPU = {
    "H100": "hopper", "H200": "hopper", "H20": "hopper", "H800": "hopper", "B200": "blackwell", "B300": "blackwell",
    "GB200": "blackwell", "GB300": "blackwell", "MI300X": "cdna3", "MI325X": "cdna3", "MI355X": "cdna4",
}  # fmt: skip
# How many times the scatter of a clean measurement a record is given: launch flags that are not published, sources
# that round or retell, and decode steps read off fleets.
UNKNOWN_FLAGS, RETOLD, OF_A_FLEET = 3.0, 2.5, 3.0
# A build with kernels of its own; and where the acceptance of a speculative run was read.
FORK = 6.0
DOUBT_OF_ACCEPTANCE = {"own": 1.0, "alike": 1.5, "elsewhere": 4.0, "told": 3.0}
DOUBT_OF_FLAGS = {"high": 1.0, "medium": 1.5, "low": 3.0}


@dataclass(frozen=True, slots=True)
class Release:
    """What one engine profile speaks for: a GPU family and a release of SGLang."""

    family: str
    version: str

    @property
    def place(self) -> tuple[int, Version]:
        """Order by family, then by release."""
        return FAMILIES.index(self.family), Version(self.version)


@dataclass(frozen=True, slots=True)
class Record:
    """A point to be fitted or scored, with the doubt it deserves."""

    point: Point
    release: Release
    doubt: float

    def case(self, engine: EngineProfile) -> Case:
        """Return the case of this record under an engine profile."""
        return replace(case_of(self.point, engine=engine), doubt=self.doubt)


def published() -> list[Point]:
    """Read the published points."""
    return [parse_point(line, number) for number, line in read_lines(DATA)]


def release_of(point: Point) -> Release | None:
    """Return whose profile a record belongs to: its GPU's family, and its release without post numbers."""
    family = FAMILY_OF_GPU.get(point.gpu)
    if family is None or point.engine_version is None:
        return None
    version = Version(point.engine_version)
    return Release(family, max(Version(version.base_version), Version(OLDEST)).base_version)


def records(points: Iterable[Point]) -> list[Record]:
    """Return every record a single server's equations answer, decode steps of fleets among them; no outliers."""
    usable = []
    for point in points:
        release = release_of(point)
        if release is None or point.role == "outlier" or point.gpu == FOUNDING_GPU:
            continue
        steps = decode_steps(point) if point.extra.get("pools") or point.disaggregated else [point]
        usable += [Record(p, release, doubt_of(point) * (OF_A_FLEET if p is not point else 1.0)) for p in steps]
    return [record for record in usable if answerable(record.point)]


def answerable(point: Point) -> bool:
    """Whether the model answers a record, and says something about it that was measured."""
    if not point.measured or (point.isl is None and point.metric_kind == "serving" and point.tpot_mean_ms is None):
        return False
    try:
        case_of(point)
    except InputError:
        return False
    return True


def doubt_of(point: Point) -> float:
    """Return how much more than a clean measurement a record may scatter."""
    certainty = re.match(r"\w+", str(point.extra.get("launch_args_certainty") or ""))
    flags = DOUBT_OF_FLAGS.get(certainty[0], UNKNOWN_FLAGS) if certainty else UNKNOWN_FLAGS
    forked = FORK if "fork" in str(point.extra.get("variant") or "").lower() else 1.0
    drafts = DOUBT_OF_ACCEPTANCE[acceptance_basis(point)] if point.mtp else 1.0
    return max(flags * (RETOLD if point.trust == "C" else 1.0), forked, drafts)


def acceptance_basis(point: Point) -> str:
    """Return where a record's acceptance comes from: its own streams, like runs, runs on other GPUs, or a remark."""
    basis = str(point.extra.get("accept_length_basis") or "")
    if basis.startswith("own"):
        return "own"
    return ("elsewhere" if "other GPUs" in basis else "alike") if basis.startswith("mean") else "told"


def decode_steps(point: Point) -> list[Point]:
    """Return the pure decode step that a fleet's record holds: a decode server never prefills.

    Its running requests: clients, by the share of a request's life that it decodes (TPOT and TTFT as measured), over
    the decode servers. Servers over several nodes and runs without both figures say nothing.
    """
    pools = [pool for pool in point.extra.get("pools") or () if pool["role"] == "decode"]
    tpot, ttft = point.tpot_mean_ms or point.tpot_median_ms, point.ttft_mean_ms or point.ttft_median_ms
    if len(pools) != 1 or not (tpot and ttft and point.concurrency and point.isl and point.osl):
        return []
    pool: dict[str, Any] = pools[0]
    gpus = int(pool["gpus_per_server"])
    if gpus > 8:
        return []
    mean = (1.0 + (1.0 if point.range_ratio is None else point.range_ratio)) / 2.0
    isl, osl = mean * point.isl, mean * point.osl
    decoding = tpot * osl / (tpot * osl + ttft)
    batch = point.concurrency * decoding / int(pool["servers"])
    if batch < 0.75:
        return []
    return [
        replace(
            point, id=f"{point.id}-decode", metric_kind="decode_step", concurrency=max(1.0, round(batch)),
            context_tokens=isl + osl / 2.0, n_gpus=gpus, n_nodes=1, disaggregated=False,
            launch_args=pool["launch_args"], ttft_mean_ms=None, ttft_median_ms=None, output_tok_s=None,
            extra={"dataset": "random"},
        )
    ]  # fmt: skip


def merged(same: Sequence[Record]) -> list[Record]:
    """Merge repeats of one question into one record with the median of each figure."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in same:
        load = replace(record.point, id="", role="", extra={}, **dict.fromkeys(METRICS))
        key = (*(getattr(load, name) for name in Point.__slots__ if name != "extra"),)
        groups[(record.release, record.doubt, *key)].append(record)
    merged_records = []
    for group in groups.values():
        points = [record.point for record in group]
        values = {name: [v for p in points if (v := getattr(p, name)) is not None] for name in METRICS}
        figures = {name: median(v) if v else None for name, v in values.items()}
        merged_records.append(replace(group[0], point=replace(points[0], id="+".join(p.id for p in points), **figures)))
    return merged_records
