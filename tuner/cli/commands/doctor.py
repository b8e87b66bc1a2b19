"""`sgtune doctor` and `sgtune cluster`: what is installed, what is missing, and which nodes there are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.cluster.found_nodes import FoundCluster
    from tuner.doctor import PartReport

EXAMPLE = "Example: sgtune doctor --python /opt/sglang/bin/python; sgtune doctor --cluster auto --measure"
BROKEN = 1
CLUSTER_EXAMPLE = (
    "Example: sgtune cluster --from slurm; sgtune cluster --from ray --out cluster.toml; "
    "sgtune cluster --from hosts --hosts node0,node1"
)
NONE_READY = 1


class ClusterSource(StrEnum):
    """Who is asked."""

    RAY = "ray"
    SLURM = "slurm"
    HOSTS = "hosts"


def doctor(
    python: options.Python = "python3",
    cluster: options.Cluster = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --cluster: measure every node and name one that is slow (minutes).")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the parts installed and missing, with the command that adds each. Exit 1 only if something is broken.

    With --cluster: report every node of a Ray cluster, and anything there that would falsify measurements; with
    --measure also how fast each is.
    """
    from hwprobe.errors import InputError

    if cluster is not None:
        _doctor_of_cluster(cluster, measure=measure, json=json)
        return
    if measure:
        raise InputError("--measure is for the nodes of a cluster: add --cluster auto; here, sgtune probe measures")
    from tuner.doctor import PartState, examine

    findings = examine(python)
    if json:
        print_json({"findings": findings})
    else:
        _show(findings)
    if any(finding.state is PartState.BROKEN for finding in findings):
        raise typer.Exit(BROKEN)


def _doctor_of_cluster(address: str, *, measure: bool, json: bool) -> None:
    from rich.markup import escape

    from tuner.cluster.check_up import examine_cluster

    screen = console(stderr=True)
    nodes = examine_cluster(address, measure=measure, tell=lambda note: screen.print(note, markup=False))
    if json:
        print_json({"nodes": nodes})
    else:
        for node in nodes:
            console().print(escape(f"node {node.node}: {node.summary}"))
            if node.measured:
                console().print(escape(f"  measured: {node.measured}"))
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


def cluster(
    source: Annotated[
        ClusterSource,
        typer.Option("--from", help="Who is asked: a running Ray cluster, Slurm's sinfo, or hosts over ssh."),
    ],
    address: Annotated[
        str, typer.Option("--cluster", help="With --from ray: auto, HOST:PORT of its head, or a cluster file.")
    ] = "auto",
    hosts: Annotated[
        str | None, typer.Option("--hosts", help="With --from hosts: node0,node1, or a file with one a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the nodes that are ready as a cluster file.")] = None,
    json: options.Json = False,
) -> None:
    """Show the nodes there are, their GPUs, and the --hardware they make. Exit 1 where none is ready for a server."""
    from hwprobe.files import write_atomic

    nodes = _asked(source, address, hosts)
    if out is not None:
        write_atomic(out, nodes.toml())
    if json:
        print_json(nodes.document())
    else:
        _show_cluster(nodes, out)
    if not nodes.ready:
        raise typer.Exit(NONE_READY)


def _asked(source: ClusterSource, address: str, hosts: str | None) -> FoundCluster:
    """Ask. Raises InputError for options that do not go together, and where nobody answers."""
    from hwprobe.errors import InputError

    if (hosts is None) is (source is ClusterSource.HOSTS):
        raise InputError("--from hosts and --hosts go together, as in --from hosts --hosts node0,node1")
    if source is ClusterSource.RAY:
        from tuner.cluster.from_ray import nodes_of_ray

        return nodes_of_ray(address)
    if source is ClusterSource.SLURM:
        from tuner.cluster.from_slurm import nodes_of_slurm

        return nodes_of_slurm()
    from tuner.cluster.from_hosts import hosts_of, nodes_of_hosts

    return nodes_of_hosts(hosts_of(str(hosts)))


def _show_cluster(nodes: FoundCluster, out: Path | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (("node", "left"), ("address", "left"), ("GPUs", "right"), ("hardware", "left"),
                          ("CPUs", "right"), ("GiB", "right"), ("state", "left")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # the words rich takes
    for node in nodes.nodes:
        memory = "" if node.memory_gib is None else f"{node.memory_gib:,.0f}"
        table.add_row(
            escape(node.name), escape(node.address), str(node.gpus), escape(node.hardware or node.gpu or "not said"),
            "" if node.cpus is None else str(node.cpus), memory, escape(node.state),
        )  # fmt: skip
    screen = console()
    screen.print(table)
    if nodes.hardware:
        screen.print(f"together: --hardware {nodes.hardware}", markup=False)
    elif nodes.ready:
        screen.print("the catalogue has no one name for these nodes: sgtune probe on one writes its hardware.json")
    else:
        screen.print("no node is ready for a server")
    if out is not None:
        screen.print(f"wrote {out}; use it with --cluster {out}", markup=False)
