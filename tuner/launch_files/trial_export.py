"""What is exported: the command of a trial or of a plan's candidate, with its figures and the data behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from packaging.version import Version

from hwprobe.errors import InputError
from planner.fleets.deployment import Deployment
from planner.launch import LaunchSpec, launch_spec
from planner.launch_files.files import export_bundle, export_files
from planner.launch_files.fleet import FLEET_TARGETS, FleetSpec, fleet_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.record import Record, RecordedPoint
from planner.launch_files.targets import Target, possible_targets
from planner.sglang.secret_flags import clean_command, without_secrets
from tuner import __version__
from tuner.choices import SIMULATED
from tuner.evidence.standings import Standing, standings, winner_of
from tuner.evidence.trial import Manifest, TrialRecord, in_play
from tuner.launch_files.deployment_export import DEPLOYMENT_FILE, fleet_of, written
from tuner.seam import Measurement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A command with where it comes from; `documents` (by file name) lie beside the files of a bundle.

    With a `fleet` its servers and their router are written, else the one command.
    """

    spec: LaunchSpec
    provenance: Provenance
    parameters: Parameters
    documents: Mapping[str, Any] = field(default_factory=dict)
    fleet: FleetSpec | None = None

    @property
    def possible(self) -> list[Target]:
        """Return the targets that can express it."""
        return list(FLEET_TARGETS) if self.fleet is not None else possible_targets(self.spec, self.parameters)

    def write(self, folder: Path, targets: Sequence[Target] | None = None) -> list[Path]:
        """Write launch files, all that are possible by default; return their paths."""
        if self.fleet is not None:
            files = fleet_files(self.fleet, self.parameters, self.provenance)
            return files.write(folder, self.possible if targets is None else targets)
        written = possible_targets(self.spec, self.parameters) if targets is None else list(targets)
        return export_files(self.spec, self.provenance, folder, written, self.parameters)

    def write_bundle(self, folder: Path) -> list[Path]:
        """Write every possible target with a README and the data."""
        if self.fleet is not None:
            files = fleet_files(self.fleet, self.parameters, self.provenance)
            return files.write(folder, self.possible, dict(self.documents))
        return export_bundle(self.spec, self.provenance, folder, self.parameters, self.documents)


def chosen_trial(
    records: Sequence[TrialRecord], number: int | None, run: Path, servers: str | None = None
) -> TrialRecord:
    """Return the trial of that number, or the winner's first launch. Raises InputError when there is no such trial.

    `servers` is what the run was asked for, of a run over deployments.
    """
    if number is not None:
        named = next((record for record in records if record.number == number), None)
        if named is None:
            raise InputError(f"run '{run}' has no trial {number}; it has 0 to {len(records) - 1}")
        return named
    winner = winner_of(in_play(records, servers))
    if winner is None:
        raise InputError(f"run '{run}' has no feasible trial yet; name one with --trial")
    return winner.first


def spec_of(record: TrialRecord, manifest: Manifest, parameters: Parameters) -> LaunchSpec:
    """Return the launch command of a trial, with the flags its run gave to every launch, secrets left out."""
    version = Version(manifest.sglang_version)
    spec = launch_spec(
        record.config, version, model_path=parameters.model_path, host=parameters.host, port=parameters.port
    )
    run_flags = without_secrets(manifest.server_flags)
    return spec.with_words([*parameters.production.words(version, manifest.model), *run_flags])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTrial:
    """A trial among all those of its run."""

    record: TrialRecord
    records: Sequence[TrialRecord]
    manifest: Manifest


def trial_export(
    trial: ExportedTrial, parameters: Parameters, command: str, documents: Mapping[str, Any] | None = None
) -> Exportable:
    """Return a trial ready to be written."""
    record, records, manifest = trial.record, trial.records, trial.manifest
    standing = next((s for s in standings(records) if record in s.launches), None)
    export_parameters = parameters
    if not manifest.simulated and standing is not None:
        export_parameters = replace(parameters, boot_s=max(launch.boot_s for launch in standing.launches))
    flags = tuple(without_secrets(manifest.server_flags))
    manifest_fields = msgspec.to_builtins(replace(manifest, server_flags=flags))
    if manifest.traffic is None:
        del manifest_fields["traffic"]
    about = {
        "trial.json": record,
        "run.json": {"simulated": manifest.simulated, **manifest_fields},
        **(documents or {}),
    }
    figures = None if standing is None else _trial_record(record, standing, manifest)
    exportable = Exportable(
        spec=spec_of(record, manifest, export_parameters),
        provenance=Provenance(lines=tuple(_trial_lines(record, standing, manifest, command)), record=figures),
        parameters=export_parameters,
        documents=about,
    )
    deployment = record.deployment
    if not isinstance(deployment, Deployment) or deployment.servers == 1:
        return exportable
    if figures is not None:
        about[DEPLOYMENT_FILE] = written(deployment, figures)
    return replace(exportable, fleet=fleet_of(deployment, manifest, export_parameters))


def _trial_lines(
    record: TrialRecord, standing: Standing | None, manifest: Manifest, command: str
) -> list[tuple[str, str]]:
    lines = [
        *_stamp(manifest),
        ("made by", f"sgtune {__version__}: {clean_command(command)}"),
        ("SGLang", manifest.sglang_version),
        ("hardware", f"{manifest.hardware} (profile {manifest.hardware_hash})"),
        ("workload", manifest.load if manifest.traffic else f"{manifest.isl} in / {manifest.osl} out, {manifest.load}"),
        ("configuration", f"{record.label}, trial {record.number} ({record.source})"),
    ]
    if record.predicted:
        low, high = (record.predicted.get(f"output_tok_s_{end}") for end in ("low", "high"))
        band = "" if low is None or high is None else f" (90 % band {low:.1f} to {high:.1f})"
        lines.append(("predicted", f"{record.predicted['output_tok_s']:.1f} output tok/s{band}"))
    target = record.target
    if target is not None and standing is not None:
        low, high = standing.interval
        launches = len(standing.launches)
        over = f", over {launches} launches" if launches > 1 else ""
        lines.append(
            (
                f"{SIMULATED if manifest.simulated else 'measured'} on the {manifest.engine} engine",
                f"{standing.output_tok_s:.1f} output tok/s (95 % interval {low:.1f} to {high:.1f}{over}), "
                f"TPOT {target.tpot_ms['mean']:.2f} ms, TTFT {target.ttft_ms['mean']:.0f} ms",
            )
        )
    return lines


def _stamp(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the line that marks simulated figures, if they are."""
    if not manifest.simulated:
        return []
    played = f"the {manifest.engine} engine played world '{manifest.world}'"
    return [(SIMULATED, f"{played}; no machine was measured: sgtune verify before you rely on the figures")]


def _trial_record(record: TrialRecord, standing: Standing, manifest: Manifest) -> Record:
    """Return the ladder of this trial, its rates over all launches of the configuration together."""
    points = [_figure(point, standing) for point in record.points if point.verdict is Verdict.OK]
    return Record(
        sgtune=__version__,
        sglang_version=manifest.sglang_version,
        hardware=manifest.hardware,
        hardware_hash=manifest.hardware_hash,
        model=manifest.model,
        isl=manifest.isl,
        osl=manifest.osl,
        range_ratio=manifest.range_ratio,
        basis="measured",
        points=tuple(points),
        engine=manifest.engine,
        world=manifest.world if manifest.simulated else None,
        nnodes=record.config.nnodes,
        traffic=manifest.traffic,
    )


def _figure(point: Measurement, standing: Standing) -> RecordedPoint:
    rate, interval = standing.rate_at(point.load) or (point.output_tok_s, point.output_tok_s_interval)
    return RecordedPoint(
        concurrency=point.concurrency,
        request_rate=point.request_rate,
        output_tok_s=rate,
        interval=interval,
        ttft_mean_ms=point.ttft_ms["mean"],
        tpot_mean_ms=point.tpot_ms["mean"],
    )
