"""`sgtune check`: any SGLang launch line, explained: violations, resolved values, memory, speed, advice."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.common import completion, options
from tuner.cli.common.terminal import console, print_json, start_fast

if TYPE_CHECKING:
    from packaging.version import Version

    from models.workload import Slo, Workload
    from planner.check.answer import CheckQuestion
    from planner.check.verdicts import ServerVerdict
    from planner.launch_lines.launch_line import LaunchLine
    from planner.launch_lines.read import Given

EXAMPLE = (
    "Example: sgtune check --hardware h200x8 -- python -m sglang.launch_server "
    "--model-path deepseek-ai/DeepSeek-R1 --tp 8 --dp 8 --enable-dp-attention"
)
DEFAULT_GPU = "h200"
GPUS_IN_A_NODE = 8
INFEASIBLE = 3
SHELLS = ("bash", "sh", "zsh", "source", ".")
# What starts a launch line; options before it are this command's.
PROGRAMS = ("python", "python3", "sglang", "docker", "podman", "env", "uv", "numactl", *SHELLS)
OWN = (
    "--hardware", "--sglang-version", "--set", "--isl", "--osl", "--concurrency", "--range-ratio", "--slo",
    "--free-before-load-gib", "--mtp-acceptance", "--model", "--profile", "--json",
)  # fmt: skip
OF_PLAN = ("--request-rate", "--users", "--min-user-tok-s", "--traffic", "--rate-scale")

Line = Annotated[
    list[str] | None,
    typer.Argument(
        help="The launch line after `--`: python -m sglang.launch_server ..., sglang serve ..., docker run ..., or a "
        "file (with its arguments): shell script, compose, Kubernetes, Dynamo, SkyPilot or srt-slurm YAML, systemd "
        "unit.",
        show_default=False,
    ),
]
CheckHardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        autocompletion=completion.hardware,
        help="Catalogue name (h200x8, 2xh100x8, ...) or hardware.json; default: H200 nodes.",
    ),
]
CheckVersion = Annotated[
    str | None,
    typer.Option(
        "--sglang-version",
        autocompletion=completion.sglang_version,
        help="SGLang release; default: the image's tag, else the newest known.",
    ),
]
FreeBeforeLoad = Annotated[
    float | None,
    typer.Option("--free-before-load-gib", help="Free GiB per GPU before weights load, as a log printed it."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of a variable in the script or manifest, repeatable."),
]


def check(
    line: Line = None,
    hardware: CheckHardware = None,
    sglang_version: CheckVersion = None,
    settings: Settings = None,
    isl: Annotated[int, typer.Option("--isl", help="Input tokens per request.")] = 1000,
    osl: Annotated[int, typer.Option("--osl", help="Output tokens per request.")] = 1000,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Clients in a closed loop.")] = 64,
    range_ratio: options.RangeRatio = 1.0,
    slo: options.SloTexts = None,
    free_before_load_gib: FreeBeforeLoad = None,
    mtp_acceptance: options.MtpAcceptance = None,
    model: options.Model = None,
    profile: options.Profile = None,
    json: options.Json = False,
) -> None:
    """Explain any SGLang launch line: what SGLang refuses or changes, memory, KV tokens, speed, and what to change."""
    start_fast()
    from hwprobe.errors import InputError
    from models.workload import Slo, Workload

    try:
        verdicts = _verdicts(
            line or [],
            settings or [],
            _Asked(
                hardware=hardware,
                version=sglang_version,
                model=model,
                workload=Workload.checked(isl, osl, concurrency, range_ratio),
                slos=tuple(Slo.parse(text) for text in slo or ()),
                free_before_load_gib=free_before_load_gib,
                acceptance=mtp_acceptance,
                profile=profile,
            ),
        )
    except InputError as error:
        if json:
            print_json({"error": str(error)})
        raise
    _show(verdicts, json)


def _show(verdicts: list[ServerVerdict], json: bool) -> None:
    """Print the verdicts; raise the worst server's error, or exit by its verdict."""
    from planner.check.fleet import fleet_violations
    from planner.check.verdicts import servers_document, worst_of

    worst = worst_of(verdicts)
    together = fleet_violations(verdicts, _text_of(verdicts[0].file))
    if json:
        print_json(servers_document(verdicts, together))
    else:
        from tuner.cli.views.check_view import show_check, show_servers

        if len(verdicts) > 1:
            show_servers(verdicts, console(), together)
        if worst.answer is not None:
            show_check(worst.answer, console())
    if worst.error is not None:
        raise worst.error
    if together or (worst.answer is not None and worst.answer.verdict != "runs"):
        raise typer.Exit(INFEASIBLE)


def _text_of(name: str | None) -> str:
    """Return the text of the file, or of a folder's scripts and manifests, for the router's command in it."""
    from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
    from planner.launch_lines.read import FOLDER_SUFFIXES

    path = Path(name) if name else None
    if path is None:
        return ""
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in FOLDER_SUFFIXES and file.is_file()]
    texts = (read_bytes(file, "launch file", most_bytes=LAUNCH_FILE_BYTES) for file in files)
    return "\n".join(text.decode("utf-8", errors="replace") for text in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The options of the command, the same for every server of a file."""

    hardware: str | None
    version: str | None
    model: Path | None
    workload: Workload
    slos: tuple[Slo, ...]
    free_before_load_gib: float | None
    acceptance: float | None
    profile: Path | None


def _verdicts(words: list[str], settings: list[str], typed: _Asked) -> list[ServerVerdict]:
    from hwprobe.bounds import MACHINE, within
    from hwprobe.errors import InputError
    from planner.check.verdicts import judge_servers
    from planner.launch_lines.read import Given

    free = typed.free_before_load_gib
    if free is not None:
        within(free, "--free-before-load-gib", MACHINE["free_gib"])
    if typed.acceptance is not None and not 0.0 <= typed.acceptance < 1.0:
        raise InputError(f"--mtp-acceptance is {typed.acceptance:g}; it must be from 0 to below 1")
    inputs = Given(values=_settings(settings), caller=dict(os.environ), arguments=None)
    launches, file, inputs = _launches(words, inputs)
    unused = [f"--set {name} is used nowhere in the line" for name in inputs.unused]
    shared = _shared(typed)
    return judge_servers(launches, file, lambda launch: _question(launch, typed, shared, unused))


def _settings(texts: list[str]) -> dict[str, str]:
    """Return the NAME=VALUE texts of --set. Raises InputError for anything else."""
    from hwprobe.errors import InputError

    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set is '{text[:60]}'; write it as in --set TP=8")
        values[name.strip().removeprefix("$")] = value
    return values


def _shared(typed: _Asked) -> dict[str, Any]:
    """Return the inputs read once for all servers: the model of --model, the engine profile and MTP's acceptance."""
    from models.engine.profile import load_engine_profile
    from models.serving.estimate import acceptance_of
    from planner.inputs import read_model

    engine = load_engine_profile(typed.profile) if typed.profile else None
    return {
        "arch": read_model(typed.model) if typed.model else None,
        "engine": engine,
        "acceptance": acceptance_of(engine) if typed.acceptance is None else typed.acceptance,
    }


def _question(launch: LaunchLine, typed: _Asked, shared: dict[str, Any], notes: list[str]) -> CheckQuestion:
    from planner.check.answer import CheckQuestion
    from planner.inputs import read_hardware

    version, version_notes = _version(launch, typed.version)
    hardware = typed.hardware or _default_hardware(launch)
    if typed.hardware is None:
        version_notes = [*version_notes, f"no --hardware given: checked for {hardware}"]
    return CheckQuestion(
        launch=launch,
        hardware=read_hardware(hardware),
        hardware_assumed=typed.hardware is None,
        version=version,
        workload=typed.workload,
        slos=typed.slos,
        free_before_load_gib=typed.free_before_load_gib,
        notes=(*version_notes, *notes),
        **shared,
    )


def _refuse_options_of_another_command(words: list[str]) -> None:
    """Raise InputError for an option that this command has not, before it is taken for a flag of SGLang."""
    from hwprobe.errors import InputError

    for word in words:
        name = word.partition("=")[0]
        if name in OF_PLAN:
            raise InputError(
                f"check has no option {name}: it judges --concurrency N clients in a closed loop; `sgtune plan {name}` "
                "plans for that load"
            )
    for word in words[: _program_place(words)]:
        name = word.partition("=")[0]
        if name.startswith("--"):
            near = difflib.get_close_matches(name, OWN, n=1)
            hint = f"did you mean {near[0]}?" if near else "flags of SGLang come after the command that starts it"
            raise InputError(f"check has no option {name}; {hint}")


def _program_place(words: list[str]) -> int:
    """Return where the launch line's program stands; a flag's value may have the name of one."""
    for place, word in enumerate(words):
        is_value = place > 0 and words[place - 1].startswith("--") and "=" not in words[place - 1]
        if Path(word).name in PROGRAMS and (not is_value or words[place + 1 : place + 2] == ["-m"]):
            return place
    return 0


def _launches(words: list[str], inputs: Given) -> tuple[list[LaunchLine], str | None, Given]:
    """Return the launches of the words, of the file they name (with its arguments), or of the one string they are."""
    from hwprobe.errors import InputError
    from planner.launch_lines.read import launches_of_file, launches_of_folder, launches_of_words

    if not words:
        raise InputError(f"give a launch line after `--`, or a file that holds one. {EXAMPLE}")
    shell = len(words) > 1 and Path(words[0]).name in SHELLS and not words[1].startswith("-")
    named = words[1:] if shell else words
    path = Path(named[0])
    if len(named) == 1 and "\0" not in named[0] and len(named[0]) < 4096 and path.is_dir():
        return launches_of_folder(path, inputs), str(path), inputs
    if "\0" not in named[0] and len(named[0]) < 4096 and path.is_file():
        with_arguments = replace(inputs, arguments=named[1:] or None)
        return launches_of_file(path, with_arguments), str(path), with_arguments
    one_name = len(words) == 1 and not re.search(r"\s", words[0]) and not words[0].startswith("-")
    if one_name and ("/" in words[0] or path.suffix):
        raise InputError(f"there is no file '{words[0]}'; give a launch line after `--`, or a file that holds one")
    _refuse_options_of_another_command(words)
    return launches_of_words(words, inputs), None, inputs


def _version(launch: LaunchLine, typed_version: str | None) -> tuple[Version, list[str]]:
    """Return the release to check for and what to say about how it was chosen."""
    from models.version import NEWEST, parse_version
    from planner.check.answer import guessed_version

    if typed_version is not None:
        return parse_version(typed_version), []
    if launch.image_version is not None:
        version = parse_version(launch.image_version)
        return version, [f"SGLang {version}: taken from the image's tag"]
    if launch.pinned_version is not None:
        version = parse_version(launch.pinned_version)
        return version, [f"SGLang {version}: taken from sglang=={launch.pinned_version} beside the line"]
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
