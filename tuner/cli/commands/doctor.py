"""`sgtune doctor`: what is installed, what is missing, what would work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.doctor import PartReport

EXAMPLE = "Example: sgtune doctor --python /opt/sglang/bin/python; sgtune doctor --cluster auto"
BROKEN = 1


def doctor(python: options.Python = "python3", cluster: options.Cluster = None, json: options.Json = False) -> None:
    """List the parts installed and missing, with the command that adds each. Exit 1 only if something is broken.

    With --cluster: report every node of a Ray cluster, and anything there that would falsify measurements.
    """
    if cluster is not None:
        _doctor_of_cluster(cluster, json=json)
        return
    from tuner.doctor import PartState, examine

    findings = examine(python)
    if json:
        print_json({"findings": findings})
    else:
        _show(findings)
    if any(finding.state is PartState.BROKEN for finding in findings):
        raise typer.Exit(BROKEN)


def _doctor_of_cluster(address: str, *, json: bool) -> None:
    from rich.markup import escape

    from tuner.cluster.check_up import examine_cluster

    nodes = examine_cluster(address)
    if json:
        print_json({"nodes": nodes})
    else:
        for node in nodes:
            console().print(escape(f"node {node.node}: {node.summary}"))
            for complaint in node.complaints:
                console().print(f"  [yellow]complaint[/]: {escape(complaint)}")
    if any(node.broken for node in nodes):
        raise typer.Exit(BROKEN)


def _show(findings: Sequence[PartReport]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("part", "", "found", "serves", "to add it"):
        table.add_column(name)
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        part, *rest = (escape(text) for text in (finding.part, finding.found, finding.serves, finding.fix))
        table.add_row(part, state, *rest)
    console().print(table)
