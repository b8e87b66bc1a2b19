"""The end of a run over deployments: the answer as a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packaging.version import Version

from planner.fleets.deployment import Deployment
from planner.fleets.plan_document import deployment_document
from tuner.evidence.standings import Standing, decide, named, standings
from tuner.evidence.trial import TrialRecord
from tuner.fleet_run.loop import FleetLoop
from tuner.fleet_run.proposals import COPIES
from tuner.fleet_run.rate_matching import RoleRate, role_rate
from tuner.run.result import TrialSummary, nearest_of
from tuner.search.objective import UNITS


def rates_of(loop: FleetLoop) -> list[RoleRate]:
    """Return what servers of a role did alone, beside what was predicted of them at first."""
    return [role_rate(one, loop.plan, loop.workload) for one in loop.measured_alone]


def fleet_document(loop: FleetLoop, exports: Sequence[Path]) -> dict[str, Any]:
    """Return the document of `sgtune tune --servers ... --json`."""
    manifest, records = loop.question.manifest(), loop.records
    version = Version(manifest.sglang_version)
    decided, baseline = decide(loop.in_play), named(records, COPIES)
    best = decided.winner if decided else None
    by_number = {standing.first.number: standing for standing in standings(records)}
    nearest = None if best is not None else nearest_of(loop.in_play)
    parameters = loop.believed.context().engine.parameters
    return {
        "run": str(loop.folder.path),
        "objective": str(manifest.objective),
        "unit": UNITS[manifest.objective],
        "engine": manifest.engine,
        "simulated": manifest.simulated,
        "world": manifest.world,
        "servers": manifest.servers,
        "best": launched_document(best, version) if best else None,
        "nearest": launched_document(by_number[nearest.number], version) if nearest else None,
        "tied": [launched_document(standing, version) for standing in decided.tied] if decided else [],
        "baseline": launched_document(baseline, version) if baseline else None,
        "gain": {"over_copies": best.gain_over(baseline) if best and baseline else None},
        "launches": sum(record.repeats is None for record in records),
        "confirmations": sum(record.repeats is not None for record in records),
        "infeasible_launches": sum(not record.feasible and record.repeats is None for record in records),
        "rates": [{**asdict(rate), "over_predicted": rate.over_predicted} for rate in rates_of(loop)],
        "learned": {
            "prefill_role": parameters.prefill_role,
            "decode_role": parameters.decode_role,
            "transfer_gb_s": parameters.transfer_gb_s,
        },
        "trials": [_trial(record) for record in records],
        "engine_hours": loop.spent_s / 3600,
        "stopped": loop.stop_reason,
        "exports": [str(path) for path in exports],
    }


def launched_document(standing: Standing, version: Version) -> dict[str, Any]:
    """Return a deployment with all of its launches."""
    record = standing.first
    assert isinstance(record.deployment, Deployment)  # every record of these runs has one
    return {
        "number": record.number,
        "label": record.label,
        "source": record.source,
        "deployment": deployment_document(record.deployment, version),
        "measured": record.target,
        "predicted": record.predicted,
        "value": standing.value,
        "value_interval": list(standing.value_interval),
        "output_tok_s": standing.output_tok_s,
        "interval": list(standing.interval),
        "launches": len(standing.launches),
        "drift": standing.drift,
        "misses": list(record.misses),
    }


def _trial(record: TrialRecord) -> dict[str, Any]:
    summary = TrialSummary.of(record)
    return asdict(summary) | {"failure": record.failure, "servers": record.target.servers if record.target else []}
