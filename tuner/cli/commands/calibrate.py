"""`sgtune calibrate`: an engine profile of this machine from a few measurements."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.choices import SIMULATED
from tuner.cli.common import options
from tuner.cli.common import points as records
from tuner.cli.common import slice_options as slices
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from models.records.calibration import Calibration
    from tuner.calibrate.cases import RecordCase, Setting
    from tuner.slices.report import SliceReport

EXAMPLE = (
    "Examples: sgtune calibrate --points measured.jsonl --out h200-here.json, then sgtune plan --profile ...; "
    "sgtune calibrate --slice 4,8 --engine local --hardware h200x8 --model-path /models/DeepSeek-R1 --out here.json "
    "-- --tp 8"
)
Out = Annotated[Path, typer.Option("--out", help="Engine profile to write.")]
Base = Annotated[
    Path | None, typer.Option("--base", help="Profile to start from; default: the shipped one of the version.")
]


def calibrate(
    out: Out,
    server_flags: options.ServerFlags = None,
    points: records.MaybePoints = None,
    base: Base = None,
    hardware: records.PointsHardware = None,
    sglang_version: records.PointsVersion = None,
    launch_args: records.LaunchArgs = None,
    model: options.Model = None,
    slice_layers: slices.Slice = None,
    slice_dense: slices.SliceDense = None,
    engine: slices.SliceEngine = None,
    python: options.Python = "python3",
    image: options.Image = None,
    model_path: options.ModelPath = None,
    decode: slices.Decode = "128/256@1,16,64",
    prefill: slices.Prefill = "2048/16@1,8",
    repeats: slices.Repeats = 3,
    rounds: slices.Rounds = 1,
    together: slices.Together = False,
    cluster: options.Cluster = None,
    target: slices.Target = None,
    target_args: slices.TargetArgs = "",
    point_time: options.PointTime = "5s",
    world: options.WorldFile = None,
    seed: options.Seed = 0,
    save_points: slices.SavePoints = None,
    logs: slices.Logs = None,
    json: options.Json = False,
) -> None:
    """Move an engine profile towards measured points: one point moves tau alone, more points free more numbers.

    With --slice the points are measured here first: the model cut to a few layers starts in a minute, and two depths
    give the cost of a layer and of all else, hence the whole model.
    """

    from hwprobe.errors import InputError
    from planner.inputs import path_to_serve
    from tuner.cli.commands.tune import parse_duration_s

    if not out.name:
        raise InputError("--out names no file; write it as in --out engine-here.json")
    start = records.profile_option(base)
    slice_options = slices.SliceOptions(
        slices=slice_layers, dense=slice_dense, hardware=hardware, model=model,
        model_path=path_to_serve(model, model_path),
        version=sglang_version or options.NEWEST_VERSION, base=start, engine=engine, python=python, image=image,
        decode=decode, prefill=prefill, repeats=repeats, rounds=rounds, together=together, target=target,
        target_args=target_args, point_s=parse_duration_s(point_time, "--point-time"), world=world, seed=seed,
        words=tuple(server_flags or ()), logs=logs, cluster=cluster,
    )  # fmt: skip
    source = slices.points_of(slice_options, points, save_points or out.with_suffix(".points.jsonl"))
    setting = records.setting_of(hardware, sglang_version, launch_args, start, model)
    _calibrate(slice_options, source, setting, out, json=json)


def _calibrate(slice_options: slices.SliceOptions, source: Path, setting: Setting, out: Path, *, json: bool) -> None:
    """Fit a profile to the records of a file, write it, and show what moved."""
    from models.engine.profile import save_engine_profile
    from planner.inputs import read_model
    from tuner.calibrate.learned import learn
    from tuner.slices.report import slice_report

    usable, left_out = _usable(source, setting)
    cases = [record.case for record in usable if record.case is not None]
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    target_layout = slices.target_layout(replace(slice_options, version=str(cases[0].context.version)))
    with console(stderr=True).status(f"calibrating from {len(cases)} points"):
        simulated = any(record.simulated for record in usable)
        calibration = learn(cases, cases[0].context.engine, simulated=simulated)
        report = slice_report(cases, read_model(slice_options.model), calibration.profile, target_layout)
    save_engine_profile(calibration.profile, out)
    if json:
        print_json({"simulated": simulated, **_document(calibration, out, source, report)})
        return
    _show(calibration, simulated=simulated)
    if report is not None:
        slices.show(report, console())
        typer.echo(
            f"the points are in {source}; use them again with --points {source} --hardware {slice_options.hardware}"
        )
    typer.echo(f"wrote {out}; use it with --profile {out}")


def _usable(points: Path, setting: Setting) -> tuple[list[RecordCase], list[str]]:
    """Return the records to learn from, of one version, and why the others are left out."""
    from hwprobe.errors import InputError
    from tuner.calibrate.cases import read_cases

    usable: list[RecordCase] = []
    left_out: list[str] = []
    grouped: Counter[str] = Counter()
    for line in read_cases(points, setting):
        if line.case is None:
            left_out.append(f"{line.id}: {line.error}")
        elif line.role == "outlier":
            left_out.append(f"{line.id}: marked as an outlier")
        elif line.left_out:
            grouped[line.left_out] += 1
        else:
            usable.append(line)
    cases = [record.case for record in usable if record.case is not None]
    if not cases:
        raise InputError(f"{points}: no record can be used: {left_out[0] if left_out else 'the file is empty'}")
    versions = sorted({str(case.context.version) for case in cases})
    if setting.engine is None and len({case.context.engine.name for case in cases}) > 1:
        raise InputError(
            f"the records are of several SGLang versions ({', '.join(versions)}): a profile belongs to one; "
            "split the file, or name the profile to start from with --base"
        )
    return usable, [*left_out, *(f"{count} points {why}" for why, count in grouped.items())]


def _document(calibration: Calibration, out: Path, points: Path, report: SliceReport | None) -> dict[str, Any]:
    return {
        "profile": str(out),
        "name": calibration.profile.name,
        "points": calibration.profile.points,
        "parameters": {
            item.name: {
                "before": item.value_before,
                "after": item.value_after,
                "spread_before": item.before,
                "spread_after": item.after,
                "determined_by_data": item.by_data,
            }
            for item in calibration.parameters
        },
        "outliers": list(calibration.outliers),
        "mtp_acceptance": calibration.acceptance,
        "rms_decode": calibration.rms_decode,
        "prior_widened": calibration.width,
        "points_file": str(points),
        "slices": report.document() if report else None,
    }


def _show(calibration: Calibration, *, simulated: bool) -> None:
    from rich.table import Table

    stamp = f"{SIMULATED}: " if simulated else ""
    table = Table(title=f"{stamp}{calibration.profile.name}, {calibration.profile.points} points", title_justify="left")
    for heading in ("parameter", "before", "after", "known to, before", "after", "by the data"):
        table.add_column(heading, justify="left" if heading in ("parameter", "by the data") else "right")
    for item in calibration.parameters:
        table.add_row(
            item.name, f"{item.value_before:.4g}", f"{item.value_after:.4g}", f"{100 * item.before:.0f} %",
            f"{100 * item.after:.0f} %", "determined" if item.by_data else "not determined",
        )  # fmt: skip
    console().print(table)
    if calibration.width > 1.0:
        typer.echo(
            f"far from the base profile: its spread between machines was taken {calibration.width:.0f} times as wide"
        )
    typer.echo(f"residual of decode times and rates: {100 * calibration.rms_decode:.1f} % rms")
    if calibration.outliers:
        typer.echo(f"down-weighted as outliers: {', '.join(calibration.outliers)}")
