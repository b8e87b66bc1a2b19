"""`sgtune plan`: the best configurations for a machine and a workload, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tuner.choices import ServersChoice
from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from planner.fleets.cost import Prices
    from planner.plans.make import Plan, PlanQuestion

EXAMPLE = "Example: sgtune plan --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024 --slo 'tpot:mean<100ms'"


def plan(
    isl: options.MaybeIsl = None,
    osl: options.MaybeOsl = None,
    hardware: options.Hardware = "",
    prefill_hardware: options.PrefillHardware = None,
    decode_hardware: options.DecodeHardware = None,
    concurrency: options.MaybeConcurrency = None,
    request_rate: options.RequestRate = None,
    users: options.Users = None,
    min_user_tok_s: options.MinUserTokS = None,
    traffic: options.Traffic = None,
    rate_scale: options.RateScale = 1.0,
    map: options.TrafficMap = None,
    slo: options.SloTexts = None,
    sglang_version: options.SglangVersion = options.NEWEST_VERSION,
    range_ratio: options.RangeRatio = 1.0,
    mtp: options.Mtp = True,
    mtp_acceptance: options.MtpAcceptance = None,
    expert_skew: options.ExpertSkew = None,
    model: options.Model = None,
    model_path: options.ModelPath = None,
    profile: options.Profile = None,
    servers: options.Servers = ServersChoice.ANY,
    cost_per_gpu_hour: options.GpuPrice = None,
    api_price_input: options.ApiPriceInput = None,
    api_price_output: options.ApiPriceOutput = None,
    explain: options.Explain = False,
    out: options.PlanOut = None,
    json: options.Json = False,
) -> None:
    """Answer from physics: does it fit, how much KV cache is left, how many users at what speed, which flags."""

    from hwprobe.errors import InputError
    from planner.inputs import read_question
    from tuner.cli.under_traffic.plan_traffic import TrafficAsked, plan_for_traffic, refuse_beside_traffic

    _check_hardware(hardware, prefill_hardware, decode_hardware)
    prices = _prices(cost_per_gpu_hour, api_price_input, api_price_output)
    if traffic is not None:
        loads = {"--isl": isl, "--osl": osl, "--concurrency": concurrency, "--request-rate": request_rate,
                 "--users": users, "--min-user-tok-s": min_user_tok_s, "--prefill-hardware": prefill_hardware,
                 "--range-ratio": None if range_ratio == 1.0 else range_ratio}  # fmt: skip
        refuse_beside_traffic(loads, servers)
        traffic_options = TrafficAsked(
            hardware=hardware, sglang_version=sglang_version, slo=slo, mtp=mtp, mtp_acceptance=mtp_acceptance,
            expert_skew=expert_skew, model=model, profile=profile, traffic=traffic, rate_scale=rate_scale, map=map,
            model_path=model_path, explain=explain,
        )  # fmt: skip
        plan_for_traffic(traffic_options, prices=prices, out=out, json=json)
        return
    if rate_scale != 1.0 or map:
        raise InputError("--rate-scale and --map speak of --traffic: name the file of requests")
    if isl is None or osl is None:
        raise InputError("say how long requests are with --isl and --osl, or give a file of them with --traffic")
    question = read_question(
        hardware=hardware or str(decode_hardware), model=model, sglang_version=sglang_version, slo=slo, profile=profile,
        isl=isl, osl=osl, range_ratio=range_ratio, concurrency=concurrency, request_rate=request_rate, users=users,
        min_user_tok_s=min_user_tok_s, mtp=mtp, acceptance=mtp_acceptance, sigma=expert_skew, model_path=model_path,
    )  # fmt: skip
    answer = _planned(question, servers, prefill_hardware)
    _show(answer, prices=prices, explain=explain, out=out, json=json)


def _check_hardware(hardware: str, prefill: str | None, decode: str | None) -> None:
    """Raise InputError where neither one machine nor one for each role is given."""
    from hwprobe.errors import InputError

    if bool(hardware) == (prefill is not None or decode is not None):
        raise InputError("give --hardware, or --prefill-hardware and --decode-hardware for a machine of each role")
    if (prefill is None) != (decode is None):
        raise InputError("--prefill-hardware and --decode-hardware go together")


def _planned(question: PlanQuestion, servers: ServersChoice, prefill_hardware: str | None) -> Plan:
    """Plan one machine, or a machine for each role."""
    if prefill_hardware is None:
        from planner.fleets.make_fleet import plan_fleet

        return plan_fleet(question, servers)
    from planner.fleets.role_hardware import RoleHardware, plan_roles
    from planner.inputs import read_hardware

    return plan_roles(question, RoleHardware(prefill=read_hardware(prefill_hardware), decode=question.hardware))


def _prices(gpu_hour: float | None, api_input: float | None, api_output: float | None) -> Prices | None:
    """Return the prices, None without any. Raises InputError for an API's price alone."""
    from hwprobe.errors import InputError
    from planner.fleets.cost import Prices

    if gpu_hour is None:
        if api_input is not None or api_output is not None:
            raise InputError("--api-price-input and --api-price-output are compared with --cost-per-gpu-hour: give it")
        return None
    return Prices(gpu_hour=gpu_hour, api_input=api_input, api_output=api_output).checked()


def _show(
    answer: Plan,
    *,
    prices: Prices | None,
    explain: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Write and show the plan; exit 3 when the target cannot be met."""
    from hwprobe.files import encode_json, write_atomic
    from planner.fleets.cost import token_cost
    from planner.fleets.plan_document import plan_document
    from tuner.cli.views.plan_view import show_plan

    document = plan_document(answer, prices)
    if out is not None:
        write_atomic(out, encode_json(document) + "\n")
    if json:
        print_json(document)
    else:
        show_plan(answer, console(), explain=explain)
        if prices is not None and answer.best is not None:
            console().print(token_cost(answer.best, answer.load, prices).sentence, markup=False)
    if not (answer.fits and answer.meets_target):
        raise typer.Exit(3)
