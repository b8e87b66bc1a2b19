"""`sgtune plan --traffic`: the fewest servers that keep the SLOs over a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hwprobe.errors import InputError
from tuner.choices import ServersChoice
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from planner.fleets.cost import Prices
    from planner.traffic_plans.sizing import TrafficPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficAsked:
    """What was typed beside --traffic."""

    hardware: str
    sglang_version: str
    slo: list[str] | None
    mtp: bool
    mtp_acceptance: float | None
    expert_skew: float | None
    model: Path | None
    profile: Path | None
    traffic: Path
    rate_scale: float
    map: list[str] | None
    model_path: str | None
    explain: bool


def refuse_beside_traffic(loads: Mapping[str, object], servers: ServersChoice) -> None:
    """Raise InputError for options that a trace answers, or that no replay of one knows."""
    flags = [flag for flag, value in loads.items() if value is not None]
    if flags:
        raise InputError(f"{', '.join(flags)}: --traffic says how long requests are and when they come; leave it out")
    if servers is ServersChoice.PD:
        raise InputError("--servers pd is not modelled under --traffic: plan it with --isl, --osl and --request-rate")


def plan_for_traffic(typed: TrafficAsked, *, prices: Prices | None, out: Path | None, json: bool) -> None:
    """Plan, write and show; exit 3 when the SLOs cannot be kept."""
    from hwprobe.files import encode_json, write_atomic
    from planner.traffic_plans.plan_document import traffic_plan_document
    from tuner.cli.views.plan_view import show_plan
    from tuner.cli.views.traffic_plan_view import show_traffic_plan

    answer = _planned(typed)
    document = traffic_plan_document(answer, prices)
    if out is not None:
        write_atomic(out, encode_json(document) + "\n")
    if json:
        print_json(document)
    else:
        show_plan(answer.plan, console(), explain=typed.explain)
        show_traffic_plan(answer, console())
    if not (answer.plan.fits and answer.plan.meets_target):
        raise typer.Exit(3)


def _planned(typed: TrafficAsked) -> TrafficPlan:
    from planner.inputs import read_question
    from planner.traffic_plans.sizing import plan_traffic, traffic_question
    from tuner.trace_files.read import read_trace

    trace = read_trace(typed.traffic, typed.map or ())
    mean_isl, mean_osl = (max(1, round(float(column.mean()))) for column in (trace.isl, trace.osl))
    question = read_question(
        hardware=typed.hardware,
        model=typed.model,
        sglang_version=typed.sglang_version,
        slo=typed.slo,
        profile=typed.profile,
        isl=mean_isl,
        osl=mean_osl,
        concurrency=1,
        mtp=typed.mtp,
        acceptance=typed.mtp_acceptance,
        sigma=typed.expert_skew,
        model_path=typed.model_path,
    )
    return plan_traffic(question, traffic_question(trace, typed.traffic.name, typed.rate_scale, question.slos))
