#!/usr/bin/env python3
"""Fits what the kernels of a weight format reach beside FP8's, from published runs of other checkpoints.

    python tools/fit_kernels.py            fit, print, write models/data/kernel_shares.json
    python tools/fit_kernels.py --check    exit 1 where the file differs from what the records say

Of each kernel with enough records (models/data/checkpoint_points.jsonl) two thirds are fitted; every third one, in the
order of the file, is left out and only scored. Stream and matrix rate are shares of what the engine profile says of
FP8 on the same machine; the stream stays below the memory's own. Which numbers are free is decided by cross-validation
over the fitted records, one workload (lengths and TP) left out at a time; its errors become the bands. Of sparse
attention nothing is fitted but the errors.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwprobe.errors import InputError
from hwprobe.files import encode_json
from models.costs import weight_kernels
from models.costs.weight_kernels import SHARES_FILE, Kernel, KernelShares, ShareFile, running_kernel
from models.records.case import Case, expected
from models.records.points import Point, parse_point, read_lines
from planner.point_case import case_of

MODELS = Path(__file__).resolve().parent.parent / "models"
POINTS = MODELS / "data" / "checkpoint_points.jsonl"
OUT = MODELS / SHARES_FILE
# Figures, and the scatter of one run that a residual is divided by.
FIGURES = {"tpot_mean_ms": 0.06, "ttft_mean_ms": 0.25, "output_tok_s": 0.06}
SCATTER = np.array(list(FIGURES.values()))
# One standard deviation of a share's logarithm before any record: kernels are rarely beyond twice or half of FP8's.
PRIOR = 0.7
# Kernels whose rate is a share of the peak itself, and the middle of its prior.
OWN_RATE = {Kernel.TRTLLM_FP4: 0.5}
LEAST_RECORDS = 6
EVERY = 3
STEPS, STRIDE, LARGEST_MOVE, DONE = 12, 0.02, 0.5, 1e-3
# Numbers that may be free, simplest first: a fit has to earn each of them out of sample.
FORMS: tuple[tuple[str, ...], ...] = (
    (),
    ("stream",),
    ("rate",),
    ("rate", "stream"),
    ("first_wave_s",),
    ("stream", "first_wave_s"),
    ("rate", "stream", "first_wave_s"),
)
GAIN = 0.9
Residuals = NDArray[np.float64]
Shares = dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """A record beside its case."""

    point: Point
    case: Case

    @property
    def workload(self) -> tuple[object, ...]:
        """What runs have in common that one number may explain: lengths, TP, attention DP and MTP."""
        point = self.point
        return point.extra.get("dataset"), point.isl, point.osl, point.tp, point.attn_dp, point.mtp

    @property
    def kernel(self) -> Kernel:
        return running_kernel(self.case.context.arch.weight_formats.kind, self.case.context.machine)


def main() -> int:
    """Fit, print and write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    options = parser.parse_args()
    runs = read_runs()
    by_kernel: dict[Kernel, list[Run]] = defaultdict(list)
    for run in runs:
        if run.kernel not in (Kernel.FP8, Kernel.BF16) and set(FIGURES) <= run.point.measured.keys():
            by_kernel[run.kernel].append(run)
    fitted = {
        str(kernel): fit(kernel, members) for kernel, members in by_kernel.items() if len(members) > LEAST_RECORDS
    }
    sparse = sparse_errors([run for run in runs if run.case.context.arch.is_sparse])
    file = ShareFile(
        kernels=fitted, sparse=sparse, source="tools/fit_kernels.py on models/data/checkpoint_points.jsonl"
    )
    text = encode_json(file) + "\n"
    if not options.check:
        OUT.write_text(text, encoding="utf-8")
        return 0
    same = OUT.read_text(encoding="utf-8") == text
    print("the file is what the records say" if same else f"{OUT} differs: run tools/fit_kernels.py")
    return 0 if same else 1


def read_runs() -> list[Run]:
    """Return the records that have a load and a prediction, in the order of the file."""
    runs = []
    for number, line in read_lines(POINTS):
        point = parse_point(line, number)
        if point.role != "load unknown":
            try:
                runs.append(Run(point, case_of(point)))
            except InputError:
                continue  # tools/checkpoint_errors.py names it
    return runs


def fit(kernel: Kernel, runs: Sequence[Run]) -> KernelShares:
    """Return a kernel's shares: of the forms the simplest that no richer one beats by a tenth out of sample."""
    left_out = runs[EVERY - 1 :: EVERY]
    training = [run for run in runs if run not in left_out]
    engine = training[0].case.context.engine.parameters
    start = {"rate": OWN_RATE.get(kernel, 1.0), "stream": 1.0, "first_wave_s": engine.first_wave_s}
    largest = {"stream": min(1.0 / run.case.context.engine.parameters.eta_w for run in training)}
    if kernel in OWN_RATE:
        largest["rate"] = 1.0
    best, best_score, best_residuals = (), np.inf, np.zeros((0, 3))
    print(f"{kernel}: {len(training)} records fitted, {len(left_out)} left out")
    for form in FORMS:
        residuals = np.vstack(
            [
                residuals_of(kernel, workload, fitted_shares(kernel, rest, form, start, largest))
                for rest, workload in folds(training)
            ]
        )
        score = float(np.sqrt(np.mean((residuals / SCATTER) ** 2)))
        print(f"  free: {', '.join(form) or 'nothing':<28} out of sample {_errors(residuals)}")
        if score < GAIN * best_score:
            best, best_score, best_residuals = form, score, residuals
    shares = fitted_shares(kernel, training, best, start, largest)
    print(f"  {', '.join(f'{name} {shares[name]:.3g}' for name in best) or 'as FP8'}")
    print(f"  left out:{'':<25} {_errors(residuals_of(kernel, left_out, shares))}")
    decode, prefill = remaining(best_residuals)
    return KernelShares(
        stream=round(shares["stream"], 3),
        rate=round(shares["rate"], 3),
        own_rate=kernel in OWN_RATE,
        first_wave_s=round(shares["first_wave_s"], 3) if "first_wave_s" in best else None,
        decode_error=decode,
        prefill_error=prefill,
        records=tuple(run.point.id for run in training),
        left_out=tuple(run.point.id for run in left_out),
    )


def folds(runs: Sequence[Run]) -> list[tuple[list[Run], list[Run]]]:
    """Return the runs without one workload, and that workload's, for each of them."""
    workloads = list(dict.fromkeys(run.workload for run in runs))
    return [
        ([run for run in runs if run.workload != each], [run for run in runs if run.workload == each])
        for each in workloads
    ]


def fitted_shares(kernel: Kernel, runs: Sequence[Run], free: Sequence[str], start: Shares, largest: Shares) -> Shares:
    """Return the free shares that fit best, by Gauss-Newton on their logarithms, drawn to 1 by the prior."""
    names, first = list(free), np.log([start[name] for name in free])
    top = np.log([largest.get(name, np.inf) for name in free])
    logs = first.copy()

    def objective(at: Residuals) -> Residuals:
        shares = start | dict(zip(names, np.exp(at).tolist(), strict=True))
        return np.concatenate([(residuals_of(kernel, runs, shares) / SCATTER).ravel(), (at - first) / PRIOR])

    for _ in range(STEPS if names else 0):
        residuals = objective(logs)
        columns = [(objective(logs + STRIDE * unit) - residuals) / STRIDE for unit in np.eye(len(names))]
        move = np.clip(np.linalg.lstsq(np.array(columns).T, -residuals, rcond=None)[0], -LARGEST_MOVE, LARGEST_MOVE)
        moved = np.minimum(logs + move, top)
        if np.abs(moved - logs).max() < DONE:
            break
        logs = moved
    return start | dict(zip(names, np.exp(logs).tolist(), strict=True))


def residuals_of(kernel: Kernel, runs: Sequence[Run], shares: Shares) -> Residuals:
    """Return log(measured / predicted) of each run and figure under these shares."""
    before = weight_kernels.SHARES[kernel]
    weight_kernels.SHARES[kernel] = KernelShares(**shares, own_rate=kernel in OWN_RATE)
    try:
        return np.array([_residual(run) for run in runs])
    finally:
        weight_kernels.SHARES[kernel] = before


def _residual(run: Run) -> list[float]:
    prediction = expected(run.case)
    measured = run.point.measured
    return [float(np.log(measured[name] / (prediction.figure(name) or 1.0))) for name in FIGURES]


def sparse_errors(runs: Sequence[Run]) -> KernelShares:
    """Return what the equations of sparse attention leave: workloads count once, however often they were run.

    Runs without attention DP decode beyond their CUDA graphs: their error is a class of its own.
    """
    left_out = runs[EVERY - 1 :: EVERY]
    training = [run for run in runs if run not in left_out]
    graphed = [run for run in training if run.case.run.concurrency <= _graphed(run)]
    by_workload: dict[tuple[object, ...], list[list[float]]] = defaultdict(list)
    for run in graphed:
        by_workload[run.workload].append(_residual(run))
    residuals = np.array([np.mean(each, axis=0) for each in by_workload.values()])
    decode, prefill = remaining(residuals)
    print(f"sparse attention: {len(graphed)} records, {len(residuals)} workloads, {_errors(residuals)}")
    print(f"  left out:{'':<25} {_errors(np.array([_residual(run) for run in left_out]))}")
    return KernelShares(
        decode_error=decode,
        prefill_error=prefill,
        records=tuple(run.point.id for run in graphed),
        left_out=tuple(run.point.id for run in left_out),
    )


def _graphed(run: Run) -> int:
    config = run.case.config
    most = config.max_running_requests or run.case.run.concurrency
    return config.attn_dp_size * (config.cuda_graph_max_bs_decode or 0) if most > 1 else 0


def remaining(residuals: Residuals) -> tuple[float, float]:
    """Return one standard deviation of decode's and prefill's error, for a record that was not among these."""
    more = np.sqrt(1.0 + 1.0 / len(residuals))
    tpot, ttft, _ = (np.sqrt(np.mean(residuals**2, axis=0)) * more).tolist()
    return round(tpot, 3), round(ttft, 3)


def _errors(residuals: Residuals) -> str:
    rms = np.sqrt(np.mean(residuals**2, axis=0)) * 100.0
    return "TPOT {:.1f} %, TTFT {:.1f} %, output {:.1f} % (root mean square)".format(*rms)


if __name__ == "__main__":
    sys.exit(main())
