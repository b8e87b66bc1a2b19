"""`sgtune tune`: launch, measure, learn, and end with the best configuration and its launch files."""

from __future__ import annotations

import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.common import (
    NEWEST_VERSION,
    HardwareOption,
    IslOption,
    JsonOption,
    ModelOption,
    ModelPathOption,
    OslOption,
    ProfileOption,
    RangeRatioOption,
    SloOption,
    VersionOption,
    console,
    print_json,
    read_hardware,
    read_model,
    read_slos,
)

if TYPE_CHECKING:
    from tuner.loop import Loop
    from tuner.setup import Prepared

EXAMPLE = (
    "Example: sgtune tune --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024 --engine simulated --trials 12"
)


class EngineName(StrEnum):
    SIMULATED = "simulated"


class ObjectiveName(StrEnum):
    OUTPUT_TOK_S = "output_tok_s"
    TPOT = "tpot"


class SamplerChoice(StrEnum):
    TPE = "tpe"
    RANDOM = "random"


def tune(
    hardware: HardwareOption,
    isl: IslOption,
    osl: OslOption,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Clients in a closed loop.", show_default=False)],
    slo: SloOption = None,
    objective: Annotated[ObjectiveName, typer.Option("--objective", help="What to improve.")] = (
        ObjectiveName.OUTPUT_TOK_S
    ),
    engine: Annotated[EngineName, typer.Option("--engine", help="Where configurations run.")] = EngineName.SIMULATED,
    world: Annotated[Path | None, typer.Option("--world", help="World file: the simulated engine's truth.")] = None,
    trials: Annotated[int, typer.Option("--trials", help="Launches to spend.")] = 12,
    budget: Annotated[str | None, typer.Option("--budget", help="Engine time to spend: 45m, 4h.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of sampler and simulated engine.")] = 0,
    sampler: Annotated[SamplerChoice, typer.Option("--sampler", help="Who proposes after the seeds.")] = (
        SamplerChoice.TPE
    ),
    run: Annotated[str | None, typer.Option("--run", help="Name of the run folder.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be launched; write nothing.")] = False,
    sglang_version: VersionOption = NEWEST_VERSION,
    range_ratio: RangeRatioOption = 1.0,
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Consider multi-token prediction.")] = True,
    mtp_acceptance: Annotated[
        float, typer.Option("--mtp-acceptance", help="Probability that a drafted token is accepted.")
    ] = 0.7,
    model: ModelOption = None,
    model_path: ModelPathOption = "deepseek-ai/DeepSeek-R1",
    profile: ProfileOption = None,
    json: JsonOption = False,
) -> None:
    """Find the best configuration with few launches: physics first, then measurements."""
    from models.engine_profile import load_engine_profile
    from models.version import parse_version
    from planner.plan import PlanQuestion
    from tuner.cli.tune_view import LiveReporter, show_dry_run
    from tuner.record import Objective
    from tuner.setup import TuneQuestion, open_loop, prepare
    from tuner.study import SamplerName
    from tuner.world import load_world

    question = TuneQuestion(
        plan=PlanQuestion(
            hardware=read_hardware(hardware),
            arch=read_model(model),
            version=parse_version(sglang_version),
            isl=isl,
            osl=osl,
            range_ratio=range_ratio,
            concurrency=concurrency,
            slos=read_slos(slo),
            mtp=mtp,
            acceptance=mtp_acceptance,
            engine=load_engine_profile(profile) if profile else None,
        ),
        objective=Objective(objective),
        engine=str(engine),
        world=load_world(world),
        trials=trials,
        budget_s=parse_duration_s(budget) if budget else float("inf"),
        seed=seed,
        sampler=SamplerName(sampler),
        run=run,
        runs=runs,
        resume=resume,
    )
    prepared = prepare(question)
    if dry_run:
        show_dry_run(prepared, console())
        return
    screen = console(stderr=True)
    reporter = LiveReporter(screen, trials)
    loop, torn = open_loop(prepared, reporter)
    if torn:
        screen.print("note: the last record was incomplete and has been cut off; its trial runs again")
    with reporter:
        reporter.begin(loop, prepared)
        _run(loop)
    _finish(loop, prepared, model_path=model_path, json=json)


def _run(loop: Loop) -> None:
    """Run the loop; an interrupt leaves a run that --resume continues."""
    try:
        loop.run()
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted after {len(loop.records)} trials; go on with --resume --run {loop.folder.path.name}", err=True
        )
        raise typer.Exit(130) from None
    finally:
        loop.folder.release()


def _finish(loop: Loop, prepared: Prepared, *, model_path: str, json: bool) -> None:
    from hwprobe.files import encode_json
    from tuner.cli.tune_view import show_result
    from tuner.record import best_of
    from tuner.report import export_trial, result_document

    manifest = prepared.question.manifest()
    best = best_of(loop.records)
    exports: list[Path] = []
    if best is not None:
        exports, _ = export_trial(
            best, manifest, loop.folder.export_folder, model_path=model_path, command=command_line()
        )
    document = result_document(loop.folder.path, manifest, loop.records, loop.stop_reason, exports)
    loop.folder.write("result.json", encode_json(document) + "\n")
    if json:
        print_json(document)
    else:
        show_result(loop, manifest, exports, console(), model_path=model_path)
    if best is None:
        raise typer.Exit(3)


def command_line() -> str:
    """Return the command as typed, for the provenance of what it writes."""
    return shlex.join(["sgtune", *sys.argv[1:]])


def parse_duration_s(text: str) -> float:
    """Parse '45m', '4h', '1h30m', '90s'. Raises InputError with an example."""
    from hwprobe.errors import InputError

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not match or not any(match.groups()):
        raise InputError(f"--budget is '{text}'; write a duration as in --budget 4h or --budget 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
