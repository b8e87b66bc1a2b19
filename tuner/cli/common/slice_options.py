"""`sgtune calibrate --slice`: boots slices of the model, keeps their points, and shows the whole model foretold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.choices import SIMULATED, SIMULATED_ENGINES, EngineName
from tuner.cli.common.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

    from hwprobe.profile import HardwareProfile
    from models.architecture import ModelArchitecture
    from models.engine.profile import EngineProfile
    from models.serving.estimate import Context
    from tuner.slices.launch import Layout
    from tuner.slices.report import OnTarget, SliceReport
    from tuner.slices.run import SliceQuestion

Slice = Annotated[
    str | None,
    typer.Option("--slice", help="Boot and measure the model cut to so many layers: '4,8'; instead of --points."),
]
SliceDense = Annotated[
    int | None, typer.Option("--slice-dense", help="Dense layers of a slice; default: as many as the model has.")
]
SliceEngine = Annotated[
    EngineName | None,
    typer.Option(
        "--engine", help="What runs the slices of --slice: local, docker, emulated, or simulated (virtual time)."
    ),
]
Decode = Annotated[str, typer.Option("--decode", help="Points where decode decides: input/output@clients,...")]
Prefill = Annotated[str, typer.Option("--prefill", help="Points where prefill decides; '' for none.")]
Repeats = Annotated[int, typer.Option("--repeats", help="Measurements of each point in one boot.")]
Rounds = Annotated[int, typer.Option("--rounds", help="Boots of every slice, in turn.")]
Together = Annotated[
    bool,
    typer.Option("--together", help="Run all slices side by side and take turns: drift cancels (needs the room)."),
]
Target = Annotated[
    str | None, typer.Option("--target", help="Machine the whole model is meant for, if not --hardware.")
]
TargetArgs = Annotated[
    str, typer.Option("--target-args", help="SGLang flags of the whole model on --target: '--tp 8 --dp 8 ...'.")
]
SavePoints = Annotated[
    Path | None,
    typer.Option("--save-points", help="File for the measured points; default: beside --out, as .points.jsonl."),
]
Logs = Annotated[Path | None, typer.Option("--logs", help="Keep the servers' logs in this folder.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceOptions:
    """The options of --slice and --target as typed."""

    slices: str | None
    dense: int | None
    hardware: str | None
    model: Path | None
    model_path: str
    version: str
    base: EngineProfile | None
    engine: EngineName | None
    python: str
    image: str | None
    decode: str
    prefill: str
    repeats: int
    rounds: int
    together: bool
    target: str | None
    target_args: str
    point_s: float
    world: Path | None
    seed: int
    words: tuple[str, ...]
    logs: Path | None
    cluster: str | None = None


def points_of(options: SliceOptions, points: Path | None, save_points: Path) -> Path:
    """Return the file of points: the one given, or `save_points` after the slices were measured into it.

    Raises InputError for options that do not go together, and where measured points would be overwritten.
    """
    from hwprobe.errors import InputError

    if options.slices is None:
        if points is None:
            raise InputError("nothing to calibrate from: give --points FILE, or --slice 4,8 to measure slices here")
        return points
    if points is not None:
        raise InputError("--slice measures its own points: leave --points out")
    if options.hardware is None:
        raise InputError("--slice needs --hardware, the machine the slices run on")
    if options.engine is None:
        raise InputError(f"--slice needs --engine, what runs the slices: {', '.join(EngineName)}")
    if save_points.exists() and save_points.stat().st_size:
        raise InputError(
            f"'{save_points}' holds measured points: use them with --points, or name another file (--save-points)"
        )
    if options.engine in SIMULATED_ENGINES:
        typer.echo(
            f"{SIMULATED}: --engine {options.engine}: the profile will describe a world, not a machine", err=True
        )
    _measure(options, save_points)
    return save_points


def _measure(options: SliceOptions, save_points: Path) -> None:
    """Measure the slices into a file, a line each as it comes."""

    from hwprobe.files import encode_json, write_atomic
    from hwprobe.holds import scratch_folder
    from planner.inputs import read_hardware
    from tuner.slices.run import run_slices

    machine = read_hardware(str(options.hardware))
    with scratch_folder("slices") as temporary:
        where = (options.logs or temporary).absolute()
        question = _question(options, machine, where)
        write_atomic(where / "hardware.json", encode_json(machine) + "\n")
        write_atomic(save_points, "")
        screen = console(stderr=True)
        stamp = {"simulated": True} if options.engine in SIMULATED_ENGINES else {}
        for record in run_slices(question, lambda text: screen.print(text, markup=False)):
            with save_points.open("a", encoding="utf-8") as stream:
                stream.write(encode_json({**record, **stamp}, indent=0) + "\n")


def target_layout(options: SliceOptions) -> Layout | None:
    """Return the machine and layout the whole model is meant for; None where no option names it."""

    from hwprobe.errors import InputError
    from planner.inputs import read_hardware, read_model
    from tuner.slices.launch import layout_of

    name = options.target or options.hardware
    if options.target is None and not options.target_args:
        return None
    if name is None:
        raise InputError("--target-args needs a machine: --target, or --hardware")
    return layout_of(_context(options, read_hardware(name), read_model(options.model)), options.target_args.split())


def _question(options: SliceOptions, machine: HardwareProfile, where: Path) -> SliceQuestion:
    """Read the options. Raises InputError naming the flag, before anything is started."""

    import math

    from planner.inputs import read_model
    from tuner.engines.world import load_world
    from tuner.slices.launch import layout_of, loads_of, slices_of
    from tuner.slices.run import SliceQuestion

    whole = read_model(options.model)
    layout = layout_of(_context(options, machine, whole), options.words)
    meant_for = target_layout(options) or layout
    loads = (*loads_of(options.decode, "--decode"), *loads_of(options.prefill, "--prefill"))
    question = SliceQuestion(
        here=layout, slices=slices_of(whole, str(options.slices), options.dense), loads=loads,
        engine=EngineName(str(options.engine)),
        world=load_world(options.world), where=where, model_path=options.model_path, python=options.python,
        image=options.image, repeats=options.repeats, rounds=options.rounds, together=options.together,
        most_kv_tokens=meant_for.kv_tokens_per_rank or math.inf, point_s=options.point_s, seed=options.seed,
        hardware=machine, cluster=options.cluster,
    )  # fmt: skip
    return question.checked()


def _context(options: SliceOptions, machine: HardwareProfile, whole: ModelArchitecture) -> Context:
    from models.engine.versions import profile_for
    from models.machine import machine_of
    from models.serving.estimate import Context
    from models.version import parse_version

    version = parse_version(options.version)
    return Context(
        arch=whole, machine=machine_of(machine), engine=options.base or profile_for(version), version=version
    )


def show(report: SliceReport, screen: Console) -> None:
    """Print what the slices predict of the whole model, and what they cannot."""
    from rich.table import Table

    depths = [arch.num_hidden_layers for arch in report.slices]
    whole = report.whole.num_hidden_layers
    if report.figures:
        table = Table(title=f"{report.whole.name}: {whole} layers from slices of {depths}", title_justify="left")
        for name in ("load", "figure", *(f"{n} layers" for n in depths), "all else", "a MoE layer", f"{whole} layers",
                     "90 % band", "with dummy weights"):  # fmt: skip
            table.add_column(name, justify="left" if name in ("load", "figure") else "right")
        for figure in report.figures:
            run, moe = figure.run, figure.moe_layer
            table.add_row(
                f"{run.isl.nominal:,}/{run.osl.nominal:,} c={run.concurrency}", figure.metric,
                *(f"{figure.measured.get(n, float('nan')):,.2f}" for n in depths), f"{figure.all_else_ms:.3g} ms",
                f"{moe.value_ms:.3g} ms" + ("" if moe.determined else " ?"), f"{figure.value:,.2f}",
                f"{figure.band[0]:,.2f} to {figure.band[1]:,.2f}", f"{figure.dummy:,.2f}",
            )  # fmt: skip
        screen.print(table)
        if any(not figure.moe_layer.determined for figure in report.figures):
            screen.print("?: the slices differ by too little to give a layer's cost: take deeper ones")
    if report.on_target:
        screen.print(_target_table(report.on_target))
    screen.print("not from the slices:")
    for caveat in report.elsewhere:
        screen.print(f"  {caveat}", markup=False)


def _target_table(answers: Sequence[OnTarget]) -> object:
    from rich.table import Table

    first = answers[0].case
    table = Table(
        title=f"the whole model on {first.context.machine.name}, {first.config.layout}, by the calibrated profile",
        title_justify="left",
    )
    for name in ("load", "TPOT ms", "90 % band", "TTFT ms", "output tok/s", "90 % band"):
        table.add_column(name, justify="left" if name == "load" else "right")
    for answer in answers:
        expected, run = answer.expected, answer.case.run
        band = answer.errors.around(expected.ttft_mean_ms or 1.0, expected.tpot_mean_ms, expected.output_tok_s)
        tpot, rate = band["tpot_mean_ms"], band["output_tok_s"]
        table.add_row(
            f"{run.isl.nominal:,}/{run.osl.nominal:,} c={run.concurrency}", f"{expected.tpot_mean_ms:.2f}",
            f"{tpot[0]:.2f} to {tpot[1]:.2f}", f"{expected.ttft_mean_ms or 0.0:,.0f}", f"{expected.output_tok_s:,.0f}",
            f"{rate[0]:,.0f} to {rate[1]:,.0f}",
        )  # fmt: skip
    return table
