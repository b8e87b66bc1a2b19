"""`sgtune probe`: this machine's inventory and measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwprobe.choices import DeviceName
from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from hwprobe.measure import MeasureTask, Progress, TaskOutcome
    from hwprobe.profile import HardwareProfile
    from hwprobe.session import Probed

HARDWARE_EXAMPLE = "Example: sgtune hardware --json"
EXAMPLE = "Example: sgtune probe --out hardware.json"


def probe(
    out: Annotated[Path | None, typer.Option("--out", help="Write the profile to this file.")] = None,
    device: Annotated[
        DeviceName,
        typer.Option("--device", help="What to measure: the GPUs (cuda, also ROCm), this host, or auto: GPUs if any."),
    ] = DeviceName.AUTO,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and samples: under 20 s a GPU.")] = False,
    inventory: Annotated[bool, typer.Option("--inventory", help="Only look, measure nothing.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Compare two profiles instead of probing."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Identify this machine (GPUs by NVML, host) and measure it with torch, each figure against its data sheet."""
    from hwprobe.errors import InputError, SgtuneError

    if compare is not None:
        if out is not None or inventory or quick or device is not DeviceName.AUTO:
            raise InputError("--compare reads two profiles and measures nothing: leave the other options out")
        _compare(*compare, json=json)
        return
    probed = _probe(device, quick=quick, inventory=inventory, out=out)
    _deliver(probed, out, json=json)
    if probed.failures:
        raise SgtuneError("; ".join(probed.failures))


def hardware(json: options.Json = False) -> None:
    """List the machines that --hardware knows by name, with the figures of their data sheets."""
    from hwprobe.catalogue import hardware_from_catalogue, hardware_names

    machines = [hardware_from_catalogue(name) for name in hardware_names()]
    rows = [
        {
            "name": machine.name,
            "nodes": machine.nodes,
            "gpus_per_node": machine.gpus_per_node,
            "gpu": machine.gpus[0].name,
            "memory_gib": round(machine.gpus[0].memory_mib.value / 1024, 1),
            "hbm_tb_s": round(machine.gpus[0].hbm_gb_s.value / 1e3, 2),
        }
        for machine in machines
    ]
    if json:
        print_json({"machines": rows})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("--hardware", "nodes x GPUs", "GPU", "GiB each", "HBM TB/s"):
        table.add_column(heading, justify="left" if heading in ("--hardware", "GPU") else "right")
    for row in rows:
        size = f"{row['nodes']} x {row['gpus_per_node']}"
        table.add_row(str(row["name"]), size, str(row["gpu"]), f"{row['memory_gib']:.1f}", f"{row['hbm_tb_s']:.2f}")
    console().print(table)
    typer.echo("Others by GPU and count (h200x4), as clusters (2xh100x8), or from sgtune probe --out.")


def _probe(device: DeviceName, *, quick: bool, inventory: bool, out: Path | None) -> Probed:
    from hwprobe.errors import InputError
    from hwprobe.files import own_stream
    from hwprobe.probe import probe_machine
    from hwprobe.session import Probed, Telling, run_probe

    if inventory:
        if quick or device is not DeviceName.AUTO:
            raise InputError("--inventory measures nothing: leave out --quick and --device")
        return Probed(profile=probe_machine())

    def keep(probed: Probed) -> None:
        if out is not None and own_stream(out) is None:
            _save(probed, out)

    return run_probe(device, quick=quick, telling=Telling(progress=_progress(), keep=keep))


def _save(probed: Probed, out: Path) -> HardwareProfile:
    """Write the profile, and next to it the output of failed children: their reason alone is one line."""
    from dataclasses import replace

    from hwprobe.files import own_stream, write_atomic
    from hwprobe.profile import save_profile
    from tuner.cli.commands.tune import command_line

    profile = replace(probed.profile, command=command_line())
    save_profile(profile, out)
    if probed.said and own_stream(out) is None:
        text = "\n".join(f"=== {title}\n{stderr}" for title, stderr in probed.said.items())
        write_atomic(out.with_name(f"{out.name}.errors.txt"), text)
    return profile


def _progress() -> Progress:
    """Return what writes one line per measurement to stderr: its name when it starts, its result when it ends."""
    from tuner.cli.views.probe_view import summary

    screen = console(stderr=True)

    def tell(number: int, total: int, task: MeasureTask, outcome: TaskOutcome | None) -> None:
        if outcome is None:
            screen.print(f"[{number}/{total}] {task.title} ... ", end="", markup=False)
        else:
            screen.print(summary(outcome), markup=False)

    return tell


def _deliver(probed: Probed, out: Path | None, *, json: bool) -> None:
    from dataclasses import replace

    from tuner.cli.commands.tune import command_line
    from tuner.cli.views.probe_view import show_profile

    profile = replace(probed.profile, command=command_line())
    if out is not None:
        _save(probed, out)
        console(stderr=True).print(f"wrote {out}", markup=False)
    if json:
        print_json(profile)
    else:
        show_profile(profile, console())


def _compare(first: Path, second: Path, *, json: bool) -> None:
    from hwprobe.errors import InputError
    from hwprobe.findings import compare
    from hwprobe.profile import read_profile
    from tuner.cli.views.probe_view import show_comparison

    a, b = read_profile(first), read_profile(second)
    changes = compare(a, b)
    if not changes:
        raise InputError(f"neither {first} nor {second} holds a measurement; sgtune probe --out FILE makes one")
    if json:
        print_json({"a": str(first), "b": str(second), "changes": changes})
    else:
        show_comparison(str(first), str(second), changes, console())
