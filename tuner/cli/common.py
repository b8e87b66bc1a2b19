"""What all commands share: consoles, options read the same way, and the JSON promise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hwprobe.profile import HardwareProfile
    from models.architecture import ModelArchitecture
    from models.workload import Slo

HardwareOption = Annotated[
    str,
    typer.Option(
        "--hardware",
        help="Catalogue name (h200x8, nf5688g7, 2xh100x8, ...) or a hardware.json of sgtune probe.",
        show_default=False,
    ),
]
IslOption = Annotated[int, typer.Option("--isl", help="Input tokens per request.", show_default=False)]
OslOption = Annotated[int, typer.Option("--osl", help="Output tokens per request.", show_default=False)]
RangeRatioOption = Annotated[
    float,
    typer.Option("--range-ratio", help="Lengths are uniform on [ratio x length, length]; 1 fixes them."),
]
SloOption = Annotated[
    list[str] | None,
    typer.Option("--slo", help="Latency limit, repeatable: 'ttft:p99<2s', 'tpot:mean<50ms', 'e2e:p95<60s'."),
]
VersionOption = Annotated[str, typer.Option("--sglang-version", help="SGLang release to plan for.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="config.json (or its folder) of a DeepSeek-V3-family model; default DeepSeek-R1."),
]
ModelPathOption = Annotated[
    str, typer.Option("--model-path", help="Model path written into launch commands (a folder or a hub name).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Engine profile file to use instead of the shipped ones.")
]
NEWEST_VERSION = "0.5.23"


def console(*, stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables when piped, and plain when colours are off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, highlight=False, soft_wrap=False)


def print_json(document: Any) -> None:
    """Print exactly one line: the JSON document."""
    from hwprobe.files import encode_json

    sys.stdout.write(encode_json(document, indent=0) + "\n")


def read_hardware(name: str) -> HardwareProfile:
    """Return the machine behind --hardware: a file if it looks like one, else the catalogue."""
    from hwprobe.catalogue import hardware_from_catalogue
    from hwprobe.profile import load_profile

    path = Path(name)
    if name.endswith(".json") or "/" in name or path.is_file():
        return load_profile(path)
    return hardware_from_catalogue(name)


def read_model(path: Path | None) -> ModelArchitecture:
    """Return the model behind --model, DeepSeek-R1 by default."""
    from models.architecture import deepseek_r1, load_architecture

    return deepseek_r1() if path is None else load_architecture(path)


def read_slos(texts: list[str] | None) -> tuple[Slo, ...]:
    """Parse the --slo options."""
    from models.workload import Slo

    return tuple(Slo.parse(text) for text in texts or [])
