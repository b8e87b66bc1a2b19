"""`sgtune check`: any SGLang launch line, explained: violations, resolved values, memory, speed, advice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json, start_fast

if TYPE_CHECKING:
    from packaging.version import Version

    from models.workload import Workload
    from planner.check.answer import CheckQuestion
    from planner.sglang.launch_line import LaunchLine

EXAMPLE = (
    "Example: sgtune check --hardware h200x8 -- python -m sglang.launch_server "
    "--model-path deepseek-ai/DeepSeek-R1 --tp 8 --dp 8 --enable-dp-attention"
)
DEFAULT_GPU = "h200"
GPUS_IN_A_NODE = 8
INFEASIBLE = 3

Line = Annotated[
    list[str] | None,
    typer.Argument(
        help="The launch line after `--`: python -m sglang.launch_server ..., sglang serve ..., docker run ..., or a "
        "file: shell script, compose or Kubernetes YAML, systemd unit.",
        show_default=False,
    ),
]
CheckHardware = Annotated[
    str | None,
    typer.Option("--hardware", help="Catalogue name (h200x8, 2xh100x8, ...) or hardware.json; default: H200 nodes."),
]
CheckVersion = Annotated[
    str | None,
    typer.Option("--sglang-version", help="SGLang release; default: the image's tag, else the newest known."),
]
FreeBeforeLoad = Annotated[
    float | None,
    typer.Option("--free-before-load-gib", help="Free GiB per GPU before weights load, as a log printed it."),
]


def check(
    line: Line = None,
    hardware: CheckHardware = None,
    sglang_version: CheckVersion = None,
    isl: Annotated[int, typer.Option("--isl", help="Input tokens per request.")] = 1000,
    osl: Annotated[int, typer.Option("--osl", help="Output tokens per request.")] = 1000,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Clients in a closed loop.")] = 64,
    range_ratio: options.RangeRatio = 1.0,
    free_before_load_gib: FreeBeforeLoad = None,
    mtp_acceptance: options.MtpAcceptance = options.ACCEPTANCE,
    model: options.Model = None,
    profile: options.Profile = None,
    json: options.Json = False,
) -> None:
    """Explain any SGLang launch line: what SGLang refuses or changes, memory, KV tokens, speed, and what to change."""
    start_fast()
    from hwprobe.errors import InputError
    from models.workload import Workload
    from planner.check.answer import answer_check

    try:
        question = _question(
            line or [],
            hardware,
            sglang_version,
            model,
            workload=Workload.checked(isl, osl, concurrency, range_ratio),
            free_before_load_gib=free_before_load_gib,
            acceptance=mtp_acceptance,
            profile=profile,
        )
        answer = answer_check(question)
    except InputError as error:
        if json:
            print_json({"error": str(error)})
        raise
    if json:
        from planner.check.document import check_document

        print_json(check_document(answer))
    else:
        from tuner.cli.views.check_view import show_check

        show_check(answer, console())
    if answer.verdict != "runs":
        raise typer.Exit(INFEASIBLE)


def _question(
    words: list[str],
    hardware: str | None,
    sglang_version: str | None,
    model: Path | None,
    *,
    workload: Workload,
    free_before_load_gib: float | None,
    acceptance: float,
    profile: Path | None,
) -> CheckQuestion:
    from hwprobe.errors import InputError
    from models.engine.profile import load_engine_profile
    from planner.check.answer import CheckQuestion
    from planner.inputs import read_any_model, read_hardware

    if free_before_load_gib is not None and not 1.0 <= free_before_load_gib <= 10_000.0:
        raise InputError(
            f"--free-before-load-gib is {free_before_load_gib:g}; it must be GiB of one GPU, such as 137.24"
        )
    if not 0.0 <= acceptance < 1.0:
        raise InputError(f"--mtp-acceptance is {acceptance:g}; it must be from 0 to below 1")
    launch = _launch(words)
    notes: list[str] = []
    version, said = _version(launch, sglang_version)
    notes += said
    if hardware is None:
        hardware = _default_hardware(launch)
        notes.append(f"no --hardware given: checked for {hardware}")
    return CheckQuestion(
        launch=launch,
        hardware=read_hardware(hardware),
        arch=read_any_model(model) if model else None,
        version=version,
        workload=workload,
        free_before_load_gib=free_before_load_gib,
        engine=load_engine_profile(profile) if profile else None,
        acceptance=acceptance,
        notes=tuple(notes),
    )


def _launch(words: list[str]) -> LaunchLine:
    """Return the launch of the words, of the file they name, or of the one string they are."""
    import shlex

    from hwprobe.errors import InputError
    from planner.sglang.launch_line import launch_of_file, launch_of_words

    if not words:
        raise InputError(f"give a launch line after `--`, or a file that holds one. {EXAMPLE}")
    if len(words) == 1:
        path = Path(words[0])
        if "\0" not in words[0] and len(words[0]) < 4096 and path.is_file():
            return launch_of_file(path)
        if " " in words[0] and not words[0].startswith("-"):
            try:
                return launch_of_words(shlex.split(words[0].replace("\\\n", " ")))
            except ValueError as error:
                raise InputError(f"the launch line does not parse: {error}; check its quotes") from None
        if not words[0].startswith("-") and ("/" in words[0] or path.suffix):
            raise InputError(f"there is no file '{words[0]}'; give a launch line after `--`, or a file that holds one")
    return launch_of_words(words)


def _version(launch: LaunchLine, asked: str | None) -> tuple[Version, list[str]]:
    """Return the release to check for and what to say about how it was chosen."""
    from models.version import NEWEST, parse_version
    from planner.check.answer import guessed_version

    if asked is not None:
        return parse_version(asked), []
    if launch.image_version is not None:
        version = parse_version(launch.image_version)
        return version, [f"SGLang {version}: taken from the image's tag"]
    newest = parse_version(NEWEST)
    guess = guessed_version(launch.words, newest)
    if guess is not None:
        return newest, [
            f"no --sglang-version given: checked for the newest known, {NEWEST}; SGLang {guess[0]} is the newest "
            "that knows all flags of this line"
        ]
    return newest, [f"no --sglang-version given: checked for the newest known, {NEWEST}"]


def _default_hardware(launch: LaunchLine) -> str:
    """Return H200 nodes, as many as the line asks for."""
    from models.version import NEWEST, parse_version
    from planner.sglang.arguments import read_arguments
    from planner.sglang.dialects import from_values

    version = parse_version(NEWEST)
    nodes = from_values(read_arguments(launch.words, version).values, version).nnodes
    prefix = f"{nodes}x" if 1 < nodes <= 64 else ""
    return f"{prefix}{DEFAULT_GPU}x{GPUS_IN_A_NODE}"
