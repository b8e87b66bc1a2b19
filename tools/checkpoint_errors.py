#!/usr/bin/env python3
"""How far `sgtune predict` is from published runs of quantised checkpoints, DeepSeek-V3.2 and Kimi K2.

    python tools/checkpoint_errors.py [--points FILE] [--records] [--left-out]

No engine profile was fitted to these records (models/data/checkpoint_points.jsonl); two thirds of some kinds gave their
kernels' shares (tools/fit_kernels.py), and `--left-out` scores what no fit has seen. Per kind and GPU: records, median
of measured over predicted, the mean absolute error in percent of what was measured, and how many fall inside their own
90 % band, for TPOT, output tokens per second and TTFT. `--records` lists every record.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from hwprobe.errors import InputError
from models.costs.weight_kernels import SHARES, SPARSE
from models.records.case import predict_case
from models.records.points import Point, parse_point, read_lines
from planner.point_case import case_of

DATA = Path(__file__).resolve().parent.parent / "models" / "data" / "checkpoint_points.jsonl"
# The first measured figure of each kind is the one compared; bands are about means.
FIGURES = {
    "TPOT": ("tpot_mean_ms", "tpot_median_ms"),
    "output": ("output_tok_s",),
    "TTFT": ("ttft_mean_ms", "ttft_median_ms"),
}
UNKNOWN_LOAD = "load unknown"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its prediction (ms or tok/s) and whether it lies in the 90 % band."""

    measured: float
    predicted: float
    inside: bool

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


@dataclass(frozen=True, slots=True)
class Line:
    """A scored record: its kind, and its figures by name of FIGURES."""

    point: Point
    kind: str
    figures: dict[str, Figure]


def main() -> int:
    """Print the table, what has no prediction, and with --records every record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--points", type=Path, default=DATA, help="point records, one JSON object a line")
    parser.add_argument("--records", action="store_true", help="list every record")
    parser.add_argument("--left-out", action="store_true", help="score only what no kernel was fitted to")
    options = parser.parse_args()
    try:
        points = [parse_point(line, number) for number, line in read_lines(options.points)]
    except InputError as error:
        parser.error(f"--points: {error}")
    if options.left_out:
        points = [point for point in points if point.id not in fitted_records()]
    lines, refused = score(points)
    for row in table(lines):
        print(row)
    unasked = [point.id for point in points if point.role == UNKNOWN_LOAD]
    if unasked:
        print(f"not compared, {len(unasked)} records whose load is not published: {' '.join(unasked)}")
    for reason, ids in refused.items():
        print(f"no prediction, {len(ids)} records ({' '.join(ids)}): {reason}")
    if options.records:
        print()
        for line in lines:
            print(_record(line))
    return 0


def fitted_records() -> set[str]:
    """Return the records that shares of kernels, or the errors of sparse attention, come from."""
    return {record for shares in (*SHARES.values(), SPARSE) for record in shares.records}


def score(points: Iterable[Point]) -> tuple[list[Line], dict[str, list[str]]]:
    """Return the scored records, and the ids of those without a prediction by reason."""
    lines: list[Line] = []
    refused: dict[str, list[str]] = defaultdict(list)
    for point in points:
        if point.role == UNKNOWN_LOAD:
            continue
        try:
            lines.append(_line(point))
        except InputError as error:
            refused[str(error)].append(point.id)
    return lines, dict(refused)


def _line(point: Point) -> Line:
    case = case_of(point)
    prediction, errors = predict_case(case)
    ttft = prediction.ttft_mean_ms or prediction.ttft_median_ms or 1.0
    bands = errors.around(ttft, prediction.tpot_mean_ms, prediction.output_tok_s)
    figures = {}
    for name, metrics in FIGURES.items():
        metric = next((each for each in metrics if each in point.measured), None)
        predicted = None if metric is None else prediction.figure(metric)
        if metric is None or predicted is None:
            continue
        low, high = bands[metrics[0]]
        measured, middle = point.measured[metric], (low * high) ** 0.5
        figures[name] = Figure(measured, predicted, low <= measured * middle / predicted <= high)
    arch = case.context.arch
    model = "V3.2, " if arch.is_sparse else "K2, " if "kimi" in arch.name.lower() else ""
    return Line(point, f"{model}{arch.weights} {point.gpu}", figures)


def table(lines: Sequence[Line]) -> list[str]:
    """Return the table's rows: kinds in their order of appearance, then all."""
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line.kind].append(line)
    head = "".join(f"  {name:>6} {'error':>6} {'in band':>8}" for name in FIGURES)
    rows = [f"{'kind':16}{'records':>8}{head}"]
    rows += [_row(kind, members) for kind, members in kinds.items()]
    return [*rows, _row("all", lines)]


def _row(kind: str, lines: Sequence[Line]) -> str:
    cells = ""
    for name in FIGURES:
        figures = [line.figures[name] for line in lines if name in line.figures]
        if not figures:
            cells += f"  {'-':>6} {'-':>6} {'-':>8}"
            continue
        error = 100.0 * mean(abs(1.0 / figure.ratio - 1.0) for figure in figures)
        inside = f"{sum(figure.inside for figure in figures)}/{len(figures)}"
        cells += f"  {median(figure.ratio for figure in figures):6.2f} {error:4.0f} % {inside:>8}"
    return f"{kind:16}{len(lines):8}{cells}"


def _record(line: Line) -> str:
    point = line.point
    shares = "  ".join(
        f"{name} {figure.measured:,.1f} / {figure.predicted:,.1f}{'' if figure.inside else ' outside'}"
        for name, figure in line.figures.items()
    )
    return f"{point.id} {line.kind} {point.concurrency or 0:g} clients {point.isl or 0:g}/{point.osl or 0:g}: {shares}"


if __name__ == "__main__":
    sys.exit(main())
