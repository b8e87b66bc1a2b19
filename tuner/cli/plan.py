"""`sgtune plan`: the best configurations for a machine and a workload, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

EXAMPLE = "Example: sgtune plan --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024 --slo 'tpot:mean<100ms'"


def plan(
    hardware: HardwareOption,
    isl: IslOption,
    osl: OslOption,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Clients in a closed loop.")] = None,
    request_rate: Annotated[float | None, typer.Option("--request-rate", help="Requests per second.")] = None,
    users: Annotated[int | None, typer.Option("--users", help="Users to carry at --min-user-tok-s each.")] = None,
    min_user_tok_s: Annotated[
        float | None, typer.Option("--min-user-tok-s", help="Speed each of --users must see, tok/s.")
    ] = None,
    slo: SloOption = None,
    sglang_version: VersionOption = NEWEST_VERSION,
    range_ratio: RangeRatioOption = 1.0,
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Consider multi-token prediction.")] = True,
    mtp_acceptance: Annotated[
        float, typer.Option("--mtp-acceptance", help="Probability that a drafted token is accepted.")
    ] = 0.7,
    expert_skew: Annotated[
        float | None,
        typer.Option("--expert-skew", help="Log-spread of expert popularity: 1.2 random tokens, 0.45 text."),
    ] = None,
    model: ModelOption = None,
    model_path: ModelPathOption = "deepseek-ai/DeepSeek-R1",
    profile: ProfileOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show memory, step breakdown and every rejection.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON document to this file too.")] = None,
    json: JsonOption = False,
) -> None:
    """Answer from physics: does it fit, how much KV cache is left, how many users at what speed, which flags."""
    from hwprobe.errors import InputError
    from hwprobe.files import encode_json, write_atomic
    from models.engine_profile import load_engine_profile
    from models.version import parse_version
    from planner.plan import PlanQuestion, make_plan, plan_document
    from tuner.cli.plan_view import show_plan

    if expert_skew is not None and not 0.0 <= expert_skew <= 3.0:
        raise InputError(f"--expert-skew is {expert_skew:g}; it must be from 0 (uniform) to 3")
    question = PlanQuestion(
        hardware=read_hardware(hardware),
        arch=read_model(model),
        version=parse_version(sglang_version),
        isl=isl,
        osl=osl,
        range_ratio=range_ratio,
        concurrency=concurrency,
        request_rate=request_rate,
        users=users,
        min_user_tok_s=min_user_tok_s,
        slos=read_slos(slo),
        mtp=mtp,
        acceptance=mtp_acceptance,
        sigma=expert_skew,
        engine=load_engine_profile(profile) if profile else None,
    )
    answer = make_plan(question)
    document = plan_document(answer)
    if out is not None:
        write_atomic(out, encode_json(document) + "\n")
    if json:
        print_json(document)
    else:
        show_plan(answer, console(), model_path=model_path, explain=explain)
    if not (answer.fits and answer.meets_target):
        raise typer.Exit(3)
