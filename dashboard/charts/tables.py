"""Tables of the pages as data frames: numbers stay numbers, columns carry their units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from dashboard.readers.commands import off_by
from dashboard.readers.explanations import Equation
from hwprobe.findings import Change, ProbeFinding
from hwprobe.profile import HardwareProfile, Quantity
from planner.launch import LaunchSpec
from planner.plans.candidates import Rejected
from planner.plans.make import Plan
from tuner.evidence.trial import TrialRecord

FIGURES = re.compile(r"\d[\d.,]*")


def ranked(plan: Plan) -> pd.DataFrame:
    """Return the figures of a plan's candidates, best first; `*` marks the Pareto front. It fits 1,000 pixels."""
    front = set(plan.pareto())
    rows = []
    for index, candidate in enumerate(plan.found.candidates):
        prediction = candidate.prediction
        rows.append({
            "rank": f"{index + 1}{' *' if index in front else ''}",
            "configuration": candidate.name,
            "tok/s": round(candidate.output_tok_s),
            "per user": round(prediction.user_tok_s, 1),
            "TPOT ms": round(prediction.tpot_ms["mean"], 1),
            "TTFT ms": _whole(prediction.ttft_ms["mean"]),
            "p99": _whole(prediction.ttft_ms["p99"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def ranked_settings(plan: Plan) -> pd.DataFrame:
    """Return the settings of a plan's candidates in the same order, and why each is not the first."""
    rows = []
    for index, candidate in enumerate(plan.found.candidates):
        config = candidate.config
        rows.append({
            "rank": f"{index + 1}",
            "configuration": candidate.name,
            "at once": round(candidate.prediction.running_requests),
            "KV GiB": round(candidate.ledger.headroom_gib),
            "why not first": "" if index == 0 else candidate.why,
            "free GiB/GPU": round(candidate.ledger.free_gib, 1),
            "mem fraction": config.mem_fraction_static,
            "chunk": config.chunked_prefill_size,
            "graph bs": config.cuda_graph_max_bs_decode,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _whole(ms: float) -> int | None:
    """Return whole milliseconds; nothing for the latency of a queue that grows without end."""
    return round(ms) if math.isfinite(ms) else None


def rejected(items: Sequence[Rejected]) -> pd.DataFrame:
    """Return what a plan ruled out, with the rule or number; layouts that fell for the same reason share a row.

    Reasons that differ in their figures alone are the same: that of the layout which lacks least stands for them.
    """
    folded: dict[tuple[str, str], list[Rejected]] = {}
    for one in sorted(items, key=lambda one: one.shortage_gib):
        folded.setdefault((one.kind, FIGURES.sub("#", one.reason)), []).append(one)
    return pd.DataFrame([
        {
            "layouts": len(alike),
            "rule": alike[0].kind,
            "why": alike[0].reason + _nearest(alike),
            "which": ", ".join(dict.fromkeys(one.config.label for one in alike)),
        }
        for alike in folded.values()
    ])  # fmt: skip


def _nearest(alike: Sequence[Rejected]) -> str:
    """Say that the first reason stands for others with other figures, where it does."""
    return f", the nearest of {len(alike)}" if len({one.reason for one in alike}) > 1 else ""


def numbers(lines: Sequence[Equation]) -> pd.DataFrame:
    """Return how each number came about."""
    return pd.DataFrame([{"number": one.quantity, "equation": one.equation, "inputs": one.numbers} for one in lines])


def trials(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return trials with their knobs, whatever those are, their figures and their fate."""
    rows = []
    for record in records:
        target, off = record.target, off_by(record)
        predicted = record.predicted.get("output_tok_s")
        rows.append({
            "trial": record.number,
            "configuration": record.label,
            "outcome": str(record.outcome),
            "tok/s": round(target.output_tok_s) if target else None,
            "95 % interval": _interval(target.output_tok_s_interval) if target else "",
            "predicted": None if predicted is None else round(predicted),
            "off %": None if off is None else round(100 * off, 1),
            "tok/s per user": round(target.user_tok_s, 1) if target else None,
            "TPOT ms": round(target.tpot_ms["mean"], 1) if target else None,
            "TTFT ms": round(target.ttft_ms["mean"]) if target else None,
            "TTFT p99 ms": round(target.ttft_ms["p99"]) if target else None,
            **{knob: str(value) for knob, value in record.params.items() if knob != "layout"},
            "source": record.source,
            "note": "; ".join(record.misses) or _first_line(record),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:,.0f} to {bounds[1]:,.0f}"


def _first_line(record: TrialRecord) -> str:
    text = f"{record.failure}: {record.reason}" if record.failure else record.reason
    return (text.strip().splitlines() or [""])[0]


def flag_difference(named: Mapping[str, LaunchSpec]) -> pd.DataFrame:
    """Return the flags and environment in which launch commands differ, a column for each."""
    words = {name: _words(spec) for name, spec in named.items()}
    rows = [
        {"flag": flag} | {name: own.get(flag, "(not given)") for name, own in words.items()}
        for flag in dict.fromkeys(flag for own in words.values() for flag in own)
        if len({own.get(flag) for own in words.values()}) > 1
    ]
    return pd.DataFrame(rows, columns=["flag", *named])


def flags(spec: LaunchSpec) -> pd.DataFrame:
    """Return every flag of a launch command."""
    return pd.DataFrame([{"flag": flag, "value": value} for flag, value in _words(spec).items()])


def _words(spec: LaunchSpec) -> dict[str, str]:
    words = {flag: " ".join(values) or "(given)" for flag, *values in spec.words}
    return {**words, **{f"{name} (environment)": value for name, value in spec.environment.items()}}


def measured(measurements: Sequence[ProbeFinding]) -> pd.DataFrame:
    """Return measured against data sheet with a verdict."""
    return pd.DataFrame([
        {
            "where": one.where, "quantity": one.label, "unit": one.unit,
            "measured": _figures(one.value), "slowest": _figures(one.worst),
            "data sheet": one.sheet, "of the sheet %": None if one.fraction is None else round(100 * one.fraction, 1),
            "spread %": None if one.spread is None else round(100 * one.spread, 2), "verdict": one.verdict,
        }
        for one in measurements
    ])  # fmt: skip


def _figures(value: float | None) -> float | None:
    """Return a value with four figures: measurements are not known better."""
    return None if value is None else float(f"{value:.4g}")


PREDICTED_FROM = {
    "memory_mib": ("memory", "GiB", 1024.0),
    "hbm_gb_s": ("HBM bandwidth", "GB/s", 1.0),
    "bf16_tflops": ("BF16 rate, dense", "TFLOP/s", 1.0),
    "fp8_tflops": ("FP8 rate, dense", "TFLOP/s", 1.0),
    "nvlink_gb_s": ("NVLink, per direction", "GB/s", 1.0),
    "sm_count": ("SMs", "", 1.0),
}


def used_by_predictions(machines: dict[str, HardwareProfile]) -> pd.DataFrame:
    """Return what predictions take from one GPU of each machine, with where each number came from."""
    rows = []
    for field, (label, unit, scale) in PREDICTED_FROM.items():
        row: dict[str, object] = {"per GPU": label, "unit": unit}
        for name, profile in machines.items():
            value: Quantity | None = getattr(profile.gpus[0], field) if profile.gpus else None
            row[name] = None if value is None else round(value.value / scale, 1)
            row[f"basis, {name}"] = "" if value is None else str(value.basis)
        rows.append(row)
    return pd.DataFrame(rows)


def compared(changes: Sequence[Change]) -> pd.DataFrame:
    """Return the measured quantities of two machines side by side."""
    return pd.DataFrame([
        {
            "where": change.where, "quantity": change.label, "unit": change.unit,
            "first": _figures(change.a), "second": _figures(change.b),
            "change %": None if change.change is None else round(100 * change.change, 1), "verdict": change.verdict,
        }
        for change in changes
    ])  # fmt: skip
