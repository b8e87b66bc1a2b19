"""`sgtune validate`: how far predictions are from measurements, by version and workload."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.common import options
from tuner.cli.common import points as records
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from models.records.validation import Residual, Score

EXAMPLE = "Example: sgtune validate --points measured.jsonl --profile h200-here.json"
SHIPPED = "data/published_points.jsonl"
# Half the width of the plot in characters, and the error at its edge in percent.
PLOT_HALF, PLOT_EDGE = 10, 20.0


def validate(
    points: Annotated[
        Path | None,
        typer.Option("--points", help="Records as for calibrate; default: the published points that are shipped."),
    ] = None,
    profile: options.Profile = None,
    hardware: records.PointsHardware = None,
    sglang_version: records.PointsVersion = None,
    launch_args: records.LaunchArgs = None,
    model: options.Model = None,
    by_concurrency: Annotated[
        bool, typer.Option("--by-concurrency", help="One row per number of clients, not only per workload.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show measured over predicted: mean, largest and signed error, and how many lie in their 90 % band."""
    from models.records.validation import overall, scores

    setting = records.setting_of(hardware, sglang_version, launch_args, records.profile_option(profile), model)
    source = points or Path(str(files("models").joinpath(SHIPPED)))
    residuals, errors, outliers = _residuals(source, setting)
    groups = scores(residuals, by_concurrency=by_concurrency)
    if json:
        print_json(_document(residuals, groups, overall(residuals), errors, outliers))
        return
    _show(groups, "by version and workload")
    _show(overall(residuals), "all")
    typer.echo(f"{len(errors)} records without a prediction, {outliers} marked as outliers and not counted")
    for line in errors[:5]:
        typer.echo(f"  {line['id']}: {line['error']}")
    if len(errors) > 5:
        typer.echo(f"  and {len(errors) - 5} more (--json lists them)")


def _residuals(source: Path, setting: Any) -> tuple[list[Residual], list[dict[str, str]], int]:
    """Return the residuals of all records, the records without a prediction, and the number of outliers."""
    from models.records.validation import residuals_of
    from tuner.calibrate.cases import read_cases
    from tuner.calibrate.predict_cases import predict_cases

    lines = list(read_cases(source, setting))
    errors = [{"id": line.id, "error": line.error or ""} for line in lines if line.case is None]
    outliers = sum(line.role == "outlier" for line in lines if line.case is not None)
    cases = [line.case for line in lines if line.case is not None and line.role != "outlier" and line.case.measured]
    by_case = [residuals_of(case, *foreseen) for case, foreseen in zip(cases, predict_cases(cases), strict=True)]
    return [residual for of_case in by_case for residual in of_case], errors, outliers


def _document(
    residuals: list[Residual], groups: list[Score], everything: list[Score], errors: list[dict[str, str]], outliers: int
) -> dict[str, Any]:
    return {
        "overall": everything,
        "groups": groups,
        "residuals": [
            {
                "id": r.id, "group": r.group, "concurrency": r.concurrency, "metric": r.metric, "measured": r.measured,
                "predicted": r.predicted, "residual_percent": r.percent, "in_band": r.in_band, "fitted": r.fitted,
            }
            for r in residuals
        ],
        "errors": errors,
        "outliers": outliers,
    }  # fmt: skip


def _show(groups: list[Score], title: str) -> None:
    from rich.table import Table

    table = Table(title=f"measured over predicted, {title}", title_justify="left")
    table.add_column("group")
    table.add_column("clients", justify="right")
    table.add_column("figure")
    for heading in ("n", "MAPE %", "largest %", "bias %", "in band %"):
        table.add_column(heading, justify="right")
    table.add_column("kind")
    table.add_column(
        f"{-PLOT_EDGE:.0f} % {'bias':^{2 * PLOT_HALF - 12}} {PLOT_EDGE:+.0f} %",
        no_wrap=True,
        min_width=2 * PLOT_HALF + 1,
    )
    for score in groups:
        table.add_row(
            score.group, score.concurrency, score.metric, str(score.count), f"{score.mape:.1f}",
            f"{score.largest:+.1f}", f"{score.bias:+.1f}", f"{score.in_band:.0f}",
            score.kind, bar(score.bias),
        )  # fmt: skip
    console().print(table)


def bar(percent: float) -> str:
    """Draw a signed error as a bar from the middle; an arrow where it leaves the plot."""
    cells = min(PLOT_HALF, round(abs(percent) / PLOT_EDGE * PLOT_HALF))
    below, above = " " * PLOT_HALF, " " * PLOT_HALF
    body = "█" * cells
    if percent < 0:
        below = ("◀" + body[1:] if percent < -PLOT_EDGE else body).rjust(PLOT_HALF)
    else:
        above = (body[:-1] + "▶" if percent > PLOT_EDGE else body).ljust(PLOT_HALF)
    return f"{below}│{above}"
