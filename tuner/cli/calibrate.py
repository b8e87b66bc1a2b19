"""`sgtune calibrate`: an engine profile of this machine from a few measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli import options
from tuner.cli import points as records
from tuner.cli.common import console, print_json

if TYPE_CHECKING:
    from models.calibration import Calibration
    from models.case import Case

EXAMPLE = "Example: sgtune calibrate --points measured.jsonl --out h200-here.json, then sgtune plan --profile ..."


def calibrate(
    points: records.Points,
    out: Annotated[Path, typer.Option("--out", help="Engine profile to write.")],
    base: Annotated[
        Path | None, typer.Option("--base", help="Profile to start from; default: the shipped one of the version.")
    ] = None,
    hardware: records.PointsHardware = None,
    sglang_version: records.PointsVersion = None,
    launch_args: records.LaunchArgs = None,
    json: options.Json = False,
) -> None:
    """Move an engine profile towards measured points: one point moves tau alone, more points free more numbers."""
    from models import calibration
    from models.engine_profile import save_engine_profile

    setting = records.setting_of(hardware, sglang_version, launch_args, records.profile_option(base))
    cases, left_out = _usable(points, setting)
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    with console(stderr=True).status(f"calibrating from {len(cases)} points"):
        found = calibration.calibrate(cases, cases[0].context.engine)
    save_engine_profile(found.profile, out)
    if json:
        print_json(_document(found, out))
    else:
        _show(found)
        typer.echo(f"wrote {out}; use it with --profile {out}")


def _usable(points: Path, setting: Any) -> tuple[list[Case], list[str]]:
    """Return the cases to learn from, of one version, and why the others are left out."""
    from hwprobe.errors import InputError
    from tuner.cases import read_cases

    cases: list[Case] = []
    left_out: list[str] = []
    for line in read_cases(points, setting):
        if line.case is None:
            left_out.append(f"{line.id}: {line.error}")
        elif line.role == "outlier":
            left_out.append(f"{line.id}: marked as an outlier")
        else:
            cases.append(line.case)
    if not cases:
        raise InputError(f"{points}: no record can be used: {left_out[0] if left_out else 'the file is empty'}")
    versions = sorted({str(case.context.version) for case in cases})
    if setting.engine is None and len({case.context.engine.name for case in cases}) > 1:
        raise InputError(
            f"the records are of several SGLang versions ({', '.join(versions)}): a profile belongs to one; "
            "split the file, or name the profile to start from with --base"
        )
    return cases, left_out


def _document(found: Calibration, out: Path) -> dict[str, Any]:
    return {
        "profile": str(out),
        "name": found.profile.name,
        "points": found.profile.points,
        "parameters": {
            item.name: {
                "before": item.value_before,
                "after": item.value_after,
                "spread_before": item.before,
                "spread_after": item.after,
                "determined_by_data": item.by_data,
            }
            for item in found.parameters
        },
        "outliers": list(found.outliers),
        "rms_decode": found.rms_decode,
    }


def _show(found: Calibration) -> None:
    from rich.table import Table

    table = Table(title=f"{found.profile.name}, {found.profile.points} points", title_justify="left")
    for heading in ("parameter", "before", "after", "known to, before", "after", "by the data"):
        table.add_column(heading, justify="left" if heading in ("parameter", "by the data") else "right")
    for item in found.parameters:
        table.add_row(
            item.name, f"{item.value_before:.4g}", f"{item.value_after:.4g}", f"{100 * item.before:.0f} %",
            f"{100 * item.after:.0f} %", "determined" if item.by_data else "not determined",
        )  # fmt: skip
    console().print(table)
    typer.echo(f"residual of decode times and rates: {100 * found.rms_decode:.1f} % rms")
    if found.outliers:
        typer.echo(f"discounted as far off: {', '.join(found.outliers)}")
