"""`sgtune export`: launch files of a run's winner or of any of its trials."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli import options

EXAMPLE = "Example: sgtune export --run nf5688g7-1000-1000-c1024 --target all --out launch/"


class TargetName(StrEnum):
    BASH = "bash"
    YAML = "yaml"
    DOCKER = "docker"
    COMPOSE = "compose"
    SYSTEMD = "systemd"
    K8S = "k8s"
    SLURM = "slurm"
    ALL = "all"


def export(
    run: Annotated[str, typer.Option("--run", help="Name of the run folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)],
    trial: Annotated[int | None, typer.Option("--trial", help="Trial number; default: the best.")] = None,
    target: Annotated[TargetName, typer.Option("--target", help="Which files to write.")] = TargetName.ALL,
    runs: options.Runs = Path("runs"),
    model_path: options.ModelPath = options.MODEL_PATH,
) -> None:
    """Write launch files (shell script, SGLang YAML) that run as they stand."""
    from hwprobe.errors import InputError
    from planner.export.targets import Target
    from tuner.cli.tune import command_line
    from tuner.confirm import winner_of
    from tuner.report import export_trial
    from tuner.store import read_manifest, read_trials

    folder = runs / run
    manifest = read_manifest(folder)
    records = read_trials(folder / "trials.jsonl")
    if trial is None:
        winner = winner_of(records)
        if winner is None:
            raise InputError(f"run '{folder}' has no feasible trial yet; name one with --trial")
        chosen = winner.first
    else:
        found = next((record for record in records if record.number == trial), None)
        if found is None:
            raise InputError(f"run '{folder}' has no trial {trial}; it has 0 to {len(records) - 1}")
        chosen = found
    targets = None if target is TargetName.ALL else [Target(target)]
    paths, skipped = export_trial(chosen, manifest, out, model_path=model_path, command=command_line(), targets=targets)
    for path in paths:
        typer.echo(f"wrote {path}")
    for missing in skipped:
        typer.echo(f"note: SGLang {manifest.sglang_version} has no {missing} form", err=True)
