"""The end of a run: the answer as a document."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from hwprobe.files import json_bytes
from hwprobe.profile import load_profile
from models.architecture import deepseek_r1
from models.architecture.shipped import checkpoint_named
from models.machine import machine_of
from planner.launch import launch_spec
from planner.plans.evidence import evidence_for
from planner.plans.frontier import pareto_front
from planner.plans.space import as_launched
from tuner.evidence.knob_effects import knob_effects, residuals
from tuner.evidence.node_effects import node_effects
from tuner.evidence.standings import BASELINE, RECIPE, Standing, decide, named, standings
from tuner.evidence.trial import Manifest, TrialOutcome, TrialRecord
from tuner.seam import Verdict
from tuner.search.objective import UNITS

TRIALS_A_PART = 1000


def nearest_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the measured trial that misses its limits by least."""
    measured = [r for r in records if r.outcome is TrialOutcome.MEASURED and r.repeats is None]
    return min(measured, key=lambda r: max(r.constraints.values(), default=0.0), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """Why a run ended, the launch files it wrote, what its engine profile says, and how long it took.

    `elapsed_s` is on the clock of the run (virtual, or of the last session), `parallel` how many launches flew at once.
    `traffic` says which window of a trace it was tuned under, and why that one.
    """

    stop_reason: str
    exports: tuple[Path, ...]
    calibrated: dict[str, Any] | None = None
    parallel: int = 1
    elapsed_s: float = 0.0
    traffic: dict[str, Any] | None = None


def result_document(run: Path, manifest: Manifest, records: Sequence[TrialRecord], end: RunEnd) -> dict[str, Any]:
    """Return the document of `sgtune tune --json`."""
    decided, baseline, base_recipe = decide(records), named(records, BASELINE), named(records, RECIPE)
    best = decided.winner if decided else None
    by_number = {standing.first.number: standing for standing in standings(records)}
    machine = machine_of(load_profile(run / "hardware.json"))
    shipped = checkpoint_named(manifest.model)
    arch = deepseek_r1() if shipped is None else shipped.arch
    evidence = evidence_for(best.first.config, machine, arch).as_dict() if best else None
    return {
        "run": str(run),
        "objective": str(manifest.objective),
        "unit": UNITS[manifest.objective],
        "engine": manifest.engine,
        "simulated": manifest.simulated,
        "world": manifest.world,
        "evidence": evidence,
        "best": _trial(best, manifest) | {"evidence": evidence} if best else None,
        "nearest": _trial(by_number[nearest.number], manifest)
        if best is None and (nearest := nearest_of(records))
        else None,
        "tied": [_tied(standing) for standing in decided.tied] if decided else [],
        "baseline": _trial(baseline, manifest) if baseline else None,
        "gain": {
            "over_defaults": best.gain_over(baseline) if best and baseline else None,
            "over_recipe": best.gain_over(base_recipe) if best and base_recipe else None,
        },
        "launches": sum(r.launched and r.repeats is None for r in records),
        "confirmations": sum(r.repeats is not None for r in records),
        "infeasible_launches": sum(r.launched and not r.feasible and r.repeats is None for r in records),
        "trials": [TrialSummary.of(record) for record in records],
        "learned": {
            "knobs": [{"sentence": effect.sentence, **asdict(effect)} for effect in knob_effects(records)],
            "measured_over_predicted": [asdict(residual) for residual in residuals(records)],
        },
        "pareto": pareto_of(records),
        "nodes": [{**asdict(effect), "slow": effect.slow} for effect in node_effects(records)],
        "calibrated": end.calibrated,
        "engine_hours": sum(r.spent_s for r in records) / 3600,
        "elapsed_hours": end.elapsed_s / 3600,
        "parallel": end.parallel,
        "stopped": end.stop_reason,
        "exports": [str(path) for path in end.exports],
        **({} if end.traffic is None else {"traffic": end.traffic}),
    }


def _tied(standing: Standing) -> dict[str, Any]:
    return {
        "number": standing.first.number,
        "label": standing.first.label,
        "value": standing.value,
        "output_tok_s": standing.output_tok_s,
        "user_tok_s": standing.user_tok_s,
    }


def _trial(standing: Standing, manifest: Manifest) -> dict[str, Any]:
    record = standing.first
    spec = launch_spec(record.config, Version(manifest.sglang_version), model_path=manifest.served_path)
    target = record.target
    return {
        "number": record.number,
        "label": record.label,
        "source": record.source,
        "config": as_launched(record.config, Version(manifest.sglang_version)).as_dict(),
        "argv": spec.argv(),
        "measured": target,
        "predicted": record.predicted,
        "value": standing.value,
        "value_interval": list(standing.value_interval),
        "output_tok_s": standing.output_tok_s,
        "interval": list(standing.interval),
        "launches": len(standing.launches),
        "drift": standing.drift,
        "misses": list(record.misses),
    }


def written_parts(document: dict[str, Any]) -> Iterator[bytes]:
    """Yield a result document as `encode_json` writes it, a thousand trials at a time: it may be of tens of MiB."""
    trials = document["trials"]
    before, mark, after = json_bytes({**document, "trials": []}).partition(b'\n  "trials": []')
    yield before + mark.removesuffix(b"]")
    for start in range(0, len(trials), TRIALS_A_PART):
        part = json_bytes(trials[start : start + TRIALS_A_PART]).removeprefix(b"[").removesuffix(b"\n]")
        yield (b"," if start else b"") + part.replace(b"\n", b"\n  ")
    yield (b"\n  ]" if trials else b"]") + after + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSummary:
    """One trial of a run in the document of its end; a run may have hundreds of thousands."""

    number: int
    source: str
    label: str
    outcome: str
    repeats: int | None
    reason: str
    predicted_output_tok_s: float | None
    measured_output_tok_s: float | None
    value: float | None

    @classmethod
    def of(cls, record: TrialRecord) -> TrialSummary:
        return cls(
            number=record.number,
            source=record.source,
            label=sys.intern(record.label),
            outcome=str(record.outcome),
            repeats=record.repeats,
            reason=record.reason,
            predicted_output_tok_s=record.predicted.get("output_tok_s"),
            measured_output_tok_s=record.target.output_tok_s if record.target else None,
            value=record.value,
        )


def pareto_of(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return the points of all ladders that no other beats in tok/s per GPU and tok/s per user, in that order."""
    usable = [
        (record, point)
        for record in records
        if record.outcome is TrialOutcome.MEASURED
        for point in record.points
        if point.verdict is Verdict.OK
    ]
    front = pareto_front([(point.output_tok_s / record.config.gpu_count, point.user_tok_s) for record, point in usable])
    return [
        {
            "trial": record.number,
            "label": record.label,
            "concurrency": point.concurrency,
            "request_rate": point.request_rate,
            "output_tok_s_per_gpu": point.output_tok_s / record.config.gpu_count,
            "user_tok_s": point.user_tok_s,
            "ttft_mean_ms": point.ttft_ms["mean"],
        }
        for record, point in (usable[index] for index in front)
    ]
