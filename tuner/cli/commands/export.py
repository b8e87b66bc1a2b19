"""`sgtune export`: launch files of a run's winner, of any of its trials, or of a plan's candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuner.choices import SIMULATED
from tuner.cli.common import export_options, options
from tuner.cli.common.export_options import TargetName
from tuner.cli.common.terminal import print_json

if TYPE_CHECKING:
    from planner.launch_files.parameters import Parameters
    from tuner.launch_files.trial_export import Exportable

EXAMPLE = "Example: sgtune export --run nf5688g7-1000-1000-c1024 --bundle launch/"


def export(
    run: options.Run = None,
    trial: export_options.Trial = None,
    plan: export_options.PlanFile = None,
    candidate: export_options.Candidate = 1,
    out: export_options.Out = None,
    bundle: export_options.Bundle = None,
    target: export_options.Targets = None,
    runs: options.Runs = Path("runs"),
    model_path: options.ModelPath = None,
    image: export_options.ContainerImage = None,
    python: export_options.HostPython = "python3",
    host: export_options.Host = "127.0.0.1",
    port: export_options.Port = 30000,
    shm_gib: export_options.ShmGib = 32,
    weights_volume: export_options.WeightsVolume = None,
    cache_volume: export_options.CacheVolume = "sglang-cache",
    metrics: export_options.Metrics = True,
    served_model_name: export_options.ServedModelName = None,
    reasoning_parser: export_options.ReasoningParser = None,
    api_key_file: export_options.ApiKeyFile = None,
    user: export_options.SystemdUser = None,
    cpus_per_gpu: export_options.CpusPerGpu = 8,
    memory_gib: export_options.MemoryGib = 128,
    time_limit: export_options.TimeLimit = "1-00:00:00",
    json: options.Json = False,
) -> None:
    """Write launch files that run as they stand: scripts, SGLang YAML, docker, compose, systemd, Kubernetes, Slurm."""
    from planner.launch import DEFAULT_MODEL_PATH
    from planner.launch_files.parameters import Parameters
    from planner.launch_files.production import Production

    production = Production(
        metrics=metrics, served_name=served_model_name, reasoning_parser=reasoning_parser, api_key_file=api_key_file,
        user=user, cpus_per_gpu=cpus_per_gpu, memory_gib=memory_gib, time_limit=time_limit,
    )  # fmt: skip
    parameters = Parameters(
        model_path=DEFAULT_MODEL_PATH if model_path is None else model_path, image=image, python=python, host=host,
        port=port, shm_gib=shm_gib, weights=weights_volume, cache=cache_volume, production=production,
    ).checked()  # fmt: skip
    _check_question(run, plan, trial, candidate, out, bundle, target)
    if plan is not None:
        from tuner.cli.commands.tune import command_line
        from tuner.launch_files.plan_export import plan_export

        exportable = plan_export(plan, candidate, parameters, command_line(), model_path)
    else:
        exportable = _of_run(runs / str(run), trial, parameters, model_path)
    _write(exportable, out, bundle, target, json=json)


def _check_question(
    run: str | None,
    plan: Path | None,
    trial: int | None,
    candidate: int,
    out: Path | None,
    bundle: Path | None,
    target: list[TargetName] | None,
) -> None:
    """Raise InputError for options that do not go together."""
    from hwprobe.errors import InputError

    if (run is None) == (plan is None):
        raise InputError("say what to export with exactly one of --run NAME and --plan PLAN.json")
    if plan is not None and trial is not None:
        raise InputError("--trial belongs to --run; a plan has --candidate N")
    if run is not None and candidate != 1:
        raise InputError("--candidate belongs to --plan; a run has --trial N")
    if out is None and bundle is None:
        raise InputError("say where to write with --out DIR (launch files) or --bundle DIR (all, with README and data)")
    if out is None and target:
        raise InputError("--target chooses what goes to --out DIR; --bundle writes them all")


def _of_run(folder: Path, trial: int | None, parameters: Parameters, model_path: str | None) -> Exportable:
    from hwprobe.profile import read_profile
    from tuner.cli.commands.tune import command_line
    from tuner.evidence.run_folder import read_manifest
    from tuner.evidence.trial_lines import read_trials
    from tuner.launch_files.trial_export import ExportedTrial, chosen_trial, trial_export

    manifest = read_manifest(folder)
    records = read_trials(folder / "trials.jsonl")
    record = chosen_trial(records, trial, folder, manifest.servers)
    documents = {"hardware.json": read_profile(folder / "hardware.json")}
    source = ExportedTrial(record=record, records=records, manifest=manifest)
    served = replace(parameters, model_path=model_path or manifest.served_path)
    return trial_export(source, served, command_line(), documents)


def _write(
    exportable: Exportable, out: Path | None, bundle: Path | None, target: list[TargetName] | None, *, json: bool
) -> None:
    from planner.launch_files.targets import Target

    everything = not target or TargetName.ALL in target
    targets = None if everything else [Target(name) for name in dict.fromkeys(target or ())]
    paths: list[Path] = []
    if out is not None:
        paths += exportable.write(out, targets)
    if bundle is not None:
        paths += exportable.write_bundle(bundle)
    possible = exportable.possible if exportable.fleet is None else list(Target)
    skipped = [kind for kind in Target if everything and kind not in possible]
    if json:
        files = [str(path) for path in paths]
        simulated = exportable.provenance.simulated
        print_json({"files": files, "skipped": [str(kind) for kind in skipped], "simulated": simulated})
    else:
        for path in paths:
            typer.echo(f"wrote {path}")
        if exportable.provenance.simulated:
            typer.echo(f"{SIMULATED}: the figures describe a world, not a machine; the files say so", err=True)
    for missing in skipped:
        typer.echo(f"note: SGLang {exportable.spec.version} and these paths have no {missing} form", err=True)
