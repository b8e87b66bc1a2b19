#!/usr/bin/env python3
"""How far `sgtune predict` is from the published prefill/decode fleets.

    python tools/fleet_errors.py [--half A|B] [--worst N] [--gpu H200]

Per GPU: records, mean absolute error of TPOT and of output tokens per second in percent, their bias (measured over
predicted), and how many TTFTs are within a factor of 1.5. A sweep is what one source measured of one release on one
GPU at one length, with or without MTP; `--half` takes one half of the sweeps. Then the worst records.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it off

from fit_records import published

from hwprobe.errors import InputError
from models.records.case import CasePrediction, expected
from models.records.points import Point
from planner.pool_case import record_case

FACTOR = 1.5
# With two deployments the better one is named by chance too often.
FEWEST_DEPLOYMENTS = 3
TPOT = ("tpot_mean_ms", "tpot_median_ms")
TTFT = ("ttft_median_ms", "ttft_mean_ms")


@dataclass(frozen=True, slots=True)
class Score:
    """One record: log of measured over predicted of each figure it has, and the fleet in short."""

    point: Point
    sweep: str
    tpot: float | None
    output: float | None
    ttft: float | None
    predicted: CasePrediction

    @property
    def worst(self) -> float:
        """The largest error of TPOT and output (log)."""
        return max((abs(error) for error in (self.tpot, self.output) if error is not None), default=0.0)


def main() -> int:
    """Print the table and the worst records."""
    options = _arguments()
    scores, refused = score(published(), options.half, options.gpu)
    print(f"{'GPU':8}{'records':>8}{'TPOT':>8}{'bias':>7}{'output':>8}{'bias':>7}{'TTFT within 1.5':>20}")
    for gpu, rows in _by_gpu(scores).items():
        print(_row(gpu, rows))
    for error, count in refused.items():
        print(f"not predicted, {count} records: {error}")
    print("\nthe deployment that gives most tok/s a GPU in a sweep, and its place among the predictions")
    for sweep, place, deployments in best_of_sweeps(scores):
        print(f"{place} of {deployments}  {sweep}")
    print("\nworst: measured over predicted")
    for item in sorted(scores, key=lambda item: -item.worst)[: options.worst]:
        print(_line(item))
    return 0


def best_of_sweeps(scores: Iterable[Score]) -> list[tuple[str, int, int]]:
    """Return for each sweep of three deployments or more: its name, the place that the best one is predicted to have
    (1 is first), and how many deployments were measured. A deployment counts by its best tok/s per GPU."""
    sweeps: dict[str, dict[object, tuple[float, float]]] = defaultdict(dict)
    for item in scores:
        if item.point.output_tok_s:
            deployment = tuple(
                tuple(pool.get(name) for name in ("role", "servers", "gpus_per_server", "tp", "attn_dp", "ep"))
                for pool in item.point.extra["pools"]
            )
            rates = [rate / item.point.n_gpus for rate in (item.point.output_tok_s, item.predicted.output_tok_s)]
            best = sweeps[item.sweep].get(deployment, (0.0, 0.0))
            sweeps[item.sweep][deployment] = (max(best[0], rates[0]), max(best[1], rates[1]))
    answers = []
    for sweep, rated in sorted(sweeps.items()):
        if len(rated) >= FEWEST_DEPLOYMENTS:
            winner = max(rated, key=lambda deployment: rated[deployment][0])
            order = sorted(rated, key=lambda deployment: -rated[deployment][1])
            answers.append((sweep, order.index(winner) + 1, len(rated)))
    return answers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--half", choices=("A", "B"), help="the sweeps of one half only")
    parser.add_argument("--gpu", help="the records of one GPU only")
    parser.add_argument("--worst", type=int, default=12, help="how many of the worst records to list")
    return parser.parse_args()


def score(
    points: Iterable[Point], half: str | None = None, gpu: str | None = None
) -> tuple[list[Score], dict[str, int]]:
    """Return the scores of all fleets among the points, and why others have none, with how many."""
    scores: list[Score] = []
    refused: dict[str, int] = defaultdict(int)
    for point in points:
        sweep = sweep_of(point)
        if not point.extra.get("pools") or point.role == "outlier":
            continue
        if half not in (None, half_of(sweep)) or gpu not in (None, point.gpu):
            continue
        try:
            prediction = expected(record_case(point))
        except InputError as error:
            refused[str(error)] += 1
            continue
        tpot, output, ttft = (_error(point, prediction, names) for names in (TPOT, ("output_tok_s",), TTFT))
        scores.append(Score(point, sweep, tpot, output, ttft, prediction))
    return scores, refused


def sweep_of(point: Point) -> str:
    """Name what was measured together."""
    source = str(point.extra.get("source") or "")[:12]
    return f"{point.gpu} {point.engine_version} {point.isl}/{point.osl} mtp={bool(point.mtp)} {source}"


def half_of(sweep: str) -> str:
    """Return the half a sweep belongs to: by a checksum, which nobody chose."""
    return "AB"[zlib.crc32(sweep.encode()) % 2]


def _error(point: Point, prediction: CasePrediction, names: Sequence[str]) -> float | None:
    """Return log(measured / predicted) of the first of these figures that was measured."""
    for name in names:
        measured, predicted = point.measured.get(name), prediction.figure(name)
        if measured and predicted:
            return math.log(measured / predicted)
    return None


def _by_gpu(scores: Sequence[Score]) -> dict[str, list[Score]]:
    rows: dict[str, list[Score]] = defaultdict(list)
    for item in scores:
        rows[item.point.gpu].append(item)
    return dict(sorted(rows.items()))


def _row(gpu: str, rows: Sequence[Score]) -> str:
    tpot, output = ([e for row in rows if (e := getattr(row, name)) is not None] for name in ("tpot", "output"))
    ttft = [row.ttft for row in rows if row.ttft is not None]
    near = sum(abs(error) <= math.log(FACTOR) for error in ttft)
    return (
        f"{gpu:8}{len(rows):8}{_percent(tpot)}{_percent(output)}{near:10} of {len(ttft):3} "
        f"({100.0 * near / max(1, len(ttft)):3.0f} %)"
    )


def _percent(errors: Sequence[float]) -> str:
    """Return the mean absolute error in percent of what was measured, and the bias: measured over predicted."""
    if not errors:
        return f"{'-':>8}{'-':>7}"
    logs = np.array(errors)
    return f"{100.0 * np.abs(np.expm1(-logs)).mean():8.1f}{100.0 * np.expm1(np.median(logs)):+7.1f}"


def _line(item: Score) -> str:
    point = item.point
    errors = "  ".join(
        f"{name} {'    -' if error is None else f'{100 * math.expm1(error):+5.0f} %'}"
        for name, error in (("TPOT", item.tpot), ("output", item.output), ("TTFT", item.ttft))
    )
    pools = " + ".join(
        f"{pool['servers']}{pool['role'][0].upper()} TP{pool.get('tp')}/{pool.get('attn_dp')}/{pool.get('ep')}"
        for pool in point.extra["pools"]
    )
    return (
        f"{point.id:7} {errors}  {item.predicted.limit:8} {point.concurrency or 0:6} clients  {pools}"
        f"{' MTP' if point.mtp else ''}  [{half_of(item.sweep)}] {item.sweep}"
    )


if __name__ == "__main__":
    sys.exit(main())
