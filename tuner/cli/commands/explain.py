"""`sgtune explain`: which settings would give a table of measurements that does not name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json, start_fast

if TYPE_CHECKING:
    from planner.explain.weigh import Explanation

EXAMPLE = "Example: sgtune explain table.jsonl"
SHOWN = 8


def explain(
    table: Annotated[
        Path, typer.Argument(help="Records of one server, one JSON object a line; unknown fields are null.")
    ],
    json: options.Json = False,
) -> None:
    """Weigh GPU, layout, MTP, kernels and what "total" counts by how well each would give the measured figures."""
    start_fast()
    from models.records.points import parse_point, read_lines
    from planner.explain.weigh import explain as weigh
    from planner.explain.wording import explain_document

    explanations = weigh([parse_point(line, number) for number, line in read_lines(table)])
    document = explain_document(explanations)
    if json:
        print_json(document)
        return
    _show(explanations)
    for sentence in document["evidence"]:
        typer.echo(f"- {sentence}")


def _show(explanations: list[Explanation]) -> None:
    from rich.table import Table

    shown = Table(title="what would give these figures, likeliest first", title_justify="left")
    for name in ("weight", "GPU", "deployment", "MTP", "kernels", "total counts"):
        shown.add_column(name, justify="right" if name == "weight" else "left")
    shown.add_column("measured over predicted")
    for each in explanations[:SHOWN]:
        h = each.hypothesis
        residuals = ", ".join(f"{value:+.0f} %" for value in each.residuals.values())
        shown.add_row(f"{each.weight:.1%}", h.gpu, h.deployment, h.mtp, h.kernels, h.reading, residuals)
    console().print(shown)
