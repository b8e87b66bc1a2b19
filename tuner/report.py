"""The end of a run: the answer as a document, and the winner's launch files with their provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packaging.version import Version

from planner.export.files import export_files
from planner.export.targets import Parameters, Provenance, Target, possible_targets
from planner.launch import LaunchSpec, launch_spec
from planner.space import as_launched
from tuner import __version__
from tuner.confirm import BASELINE, Standing, standings, winner_of
from tuner.learned import knob_effects, residuals
from tuner.record import Manifest, Outcome, TrialRecord


def nearest_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the measured trial that misses its limits by least."""
    measured = [r for r in records if r.outcome is Outcome.MEASURED and r.repeats is None]
    return min(measured, key=lambda r: max(r.constraints.values(), default=0.0), default=None)


def baseline_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the trial of SGLang's defaults, if it was measured."""
    return next((r for r in records if r.source == BASELINE and r.target is not None), None)


def spec_of(record: TrialRecord, manifest: Manifest, model_path: str) -> LaunchSpec:
    """Return the launch command of a trial."""
    return launch_spec(record.config, Version(manifest.sglang_version), model_path=model_path)


def provenance_of(record: TrialRecord, manifest: Manifest, command: str) -> Provenance:
    """Return the facts an exported file carries."""
    lines = [
        ("made by", f"sgtune {__version__}: {command}"),
        ("SGLang", manifest.sglang_version),
        ("hardware", f"{manifest.hardware} (profile {manifest.hardware_hash})"),
        ("workload", f"{manifest.isl} in / {manifest.osl} out, {manifest.concurrency} clients"),
        ("configuration", f"{record.label}, trial {record.number} ({record.source})"),
    ]
    if record.predicted:
        lines.append(("predicted", f"{record.predicted['output_tok_s']:.1f} output tok/s"))
    target = record.target
    if target is not None:
        low, high = target.output_tok_s_interval
        lines.append(
            (
                f"measured on the {manifest.engine} engine",
                f"{target.output_tok_s:.1f} output tok/s (95 % interval {low:.1f} to {high:.1f}), "
                f"TPOT {target.tpot_ms['mean']:.2f} ms, TTFT {target.ttft_ms['mean']:.0f} ms",
            )
        )
    return Provenance(lines=tuple(lines))


def export_trial(
    record: TrialRecord,
    manifest: Manifest,
    folder: Path,
    *,
    model_path: str,
    command: str,
    targets: Sequence[Target] | None = None,
) -> tuple[list[Path], list[Target]]:
    """Write the trial's launch files; return their paths and the targets its SGLang version cannot have."""
    spec = spec_of(record, manifest, model_path)
    possible = possible_targets(spec, Parameters(model_path=model_path))
    wanted = possible if targets is None else list(targets)
    skipped = [target for target in Target if target not in possible] if targets is None else []
    return export_files(spec, provenance_of(record, manifest, command), folder, wanted), skipped


def result_document(
    run: Path, manifest: Manifest, records: Sequence[TrialRecord], stop_reason: str, exports: Sequence[Path]
) -> dict[str, Any]:
    """Return the document of `sgtune tune --json`."""
    best, baseline = winner_of(records), baseline_of(records)
    known = {standing.first.number: standing for standing in standings(records)}
    return {
        "run": str(run),
        "engine": manifest.engine,
        "world": manifest.world,
        "best": _trial(best, manifest) if best else None,
        "nearest": _trial(known[nearest.number], manifest)
        if best is None and (nearest := nearest_of(records))
        else None,
        "baseline": _trial(known[baseline.number], manifest) if baseline else None,
        "launches": sum(r.launched and r.repeats is None for r in records),
        "confirmations": sum(r.repeats is not None for r in records),
        "infeasible_launches": sum(r.launched and not r.feasible and r.repeats is None for r in records),
        "trials": [_summary(r) for r in records],
        "learned": {
            "knobs": [{"sentence": effect.sentence, **asdict(effect)} for effect in knob_effects(records)],
            "measured_over_predicted": [asdict(residual) for residual in residuals(records)],
        },
        "engine_hours": sum(r.spent_s for r in records) / 3600,
        "stopped": stop_reason,
        "exports": [str(path) for path in exports],
    }


def _trial(standing: Standing, manifest: Manifest) -> dict[str, Any]:
    record = standing.first
    spec = launch_spec(record.config, Version(manifest.sglang_version))
    target = record.target
    return {
        "number": record.number,
        "label": record.label,
        "source": record.source,
        "config": as_launched(record.config, Version(manifest.sglang_version)).as_dict(),
        "argv": spec.argv(),
        "measured": target,
        "predicted": record.predicted,
        "output_tok_s": standing.output_tok_s,
        "interval": list(standing.interval),
        "launches": len(standing.launches),
        "drift": standing.drift,
        "misses": list(record.misses),
    }


def _summary(record: TrialRecord) -> dict[str, Any]:
    return {
        "number": record.number,
        "source": record.source,
        "label": record.label,
        "outcome": str(record.outcome),
        "repeats": record.repeats,
        "reason": record.reason,
        "predicted_output_tok_s": record.predicted.get("output_tok_s"),
        "measured_output_tok_s": record.target.output_tok_s if record.target else None,
    }
