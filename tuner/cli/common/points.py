"""What predict, calibrate and validate share: where records come from and what they lack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.common import completion

if TYPE_CHECKING:
    from models.engine.profile import EngineProfile
    from tuner.calibrate.cases import Setting

Points = Annotated[
    Path,
    typer.Option(
        "--points",
        help="Records: JSON lines of points, SGLang's own benchmark JSONL, or a run folder of sgtune tune.",
        show_default=False,
    ),
]
MaybePoints = Annotated[
    Path | None,
    typer.Option("--points", help="Records: JSON lines of points, SGLang's own benchmark JSONL, or a run folder."),
]
PointsHardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        autocompletion=completion.hardware,
        help="Machine of records that name none: catalogue name or hardware.json.",
    ),
]
PointsVersion = Annotated[
    str | None,
    typer.Option(
        "--sglang-version",
        autocompletion=completion.sglang_version,
        help="Release of records that name none.",
    ),
]
LaunchArgs = Annotated[
    str | None, typer.Option("--launch-args", help="SGLang flags of records that hold none: '--tp 8 --dp 8 ...'.")
]


def setting_of(
    hardware: str | None,
    version: str | None,
    launch_args: str | None,
    engine: EngineProfile | None,
    model: Path | None = None,
) -> Setting:
    """Return the command line's values for fields that records lack."""

    from models.machine import machine_of
    from models.version import parse_version
    from planner.inputs import read_hardware, read_model
    from tuner.calibrate.cases import Setting

    return Setting(
        machine=machine_of(read_hardware(hardware)) if hardware else None,
        version=str(parse_version(version)) if version else None,
        launch_args=launch_args,
        engine=engine,
        arch=read_model(model),
    )


def profile_option(path: Path | None) -> EngineProfile | None:
    """Return the engine profile behind --profile or --base."""
    from models.engine.profile import load_engine_profile

    return load_engine_profile(path) if path else None
