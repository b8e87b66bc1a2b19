"""`sgtune predict`: what a measurement would show, for every record of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.common import options
from tuner.cli.common import points as records
from tuner.cli.common.terminal import start_fast

if TYPE_CHECKING:
    from models.records.case import Case, CasePrediction
    from models.serving.uncertainty import Errors
    from tuner.calibrate.cases import Setting

EXAMPLE = "Example: sgtune predict --points asked.jsonl --out predicted.jsonl"

# Of a rate above what the server answers.
ENDLESS = (
    "{rate:g} requests/s are more than the server answers: the queue grows without end, and TTFT is that of a run of "
    "{requests:,} requests, not a steady value"
)


def predict(
    points: records.MaybePoints = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write: one line per record, in order.")] = None,
    traffic: options.Traffic = None,
    rate_scale: options.RateScale = 1.0,
    map: options.TrafficMap = None,
    replicas: Annotated[int, typer.Option("--replicas", help="Of --traffic: servers behind a router.", min=1)] = 1,
    slo: options.SloTexts = None,
    profile: options.Profile = None,
    hardware: records.PointsHardware = None,
    sglang_version: records.PointsVersion = None,
    launch_args: records.LaunchArgs = None,
    model: options.Model = None,
) -> None:
    """Predict TTFT, TPOT, output tok/s and KV tokens of every record, with a 90 % band and the assumptions.

    With --traffic: of one launch (--launch-args) under a file of requests, with its radix cache, minute by minute.
    """
    start_fast()
    from hwprobe.errors import InputError
    from tuner.cli.under_traffic.predict_traffic import LaunchAsked, predict_traffic

    if (points is None) == (traffic is None):
        raise InputError("give records with --points, or a file of requests with --traffic")
    if traffic is not None:
        launch = LaunchAsked(
            traffic=traffic,
            rate_scale=rate_scale,
            map=map,
            replicas=replicas,
            slo=slo,
            hardware=hardware,
            sglang_version=sglang_version,
            launch_args=launch_args,
            profile=profile,
            model=model,
        )
        predict_traffic(launch, out)
        return
    if rate_scale != 1.0 or map or replicas != 1 or slo:
        raise InputError("--rate-scale, --map, --replicas and --slo speak of --traffic: name the file of requests")
    if out is None or points is None:
        raise InputError("name the file of the predictions with --out")
    _predict_points(
        points, out, records.setting_of(hardware, sglang_version, launch_args, records.profile_option(profile), model)
    )


def _predict_points(points: Path, out: Path, setting: Setting) -> None:
    from hwprobe.files import encode_json, write_atomic
    from tuner.calibrate.cases import read_cases
    from tuner.calibrate.predict_cases import predict_cases

    lines = list(read_cases(points, setting))
    cases = [line.case for line in lines if line.case is not None]
    answers = iter([_answer(case, *prediction) for case, prediction in zip(cases, predict_cases(cases), strict=True)])
    documents = [{"id": line.id, "error": line.error} if line.case is None else next(answers) for line in lines]
    write_atomic(out, "".join(encode_json(document, indent=0) + "\n" for document in documents))
    typer.echo(f"wrote {len(cases)} predictions and {len(lines) - len(cases)} errors to {out}", err=True)
    if lines and not cases:
        raise typer.Exit(1)


def _answer(case: Case, predicted: CasePrediction, errors: Errors) -> dict[str, Any]:
    from models.records.case import queue_grows

    ttft_ms, grows = predicted.ttft_mean_ms, queue_grows(case)
    endless = ENDLESS.format(rate=case.run.request_rate or 0.0, requests=case.run.requests)
    band = errors.around(ttft_ms or 1.0, predicted.tpot_mean_ms, predicted.output_tok_s)
    if ttft_ms is None:
        del band["ttft_mean_ms"]
    return {
        "id": case.id,
        "ttft_mean_ms": ttft_ms,
        "ttft_median_ms": predicted.ttft_median_ms,
        "tpot_mean_ms": predicted.tpot_mean_ms,
        "tpot_median_ms": predicted.tpot_median_ms,
        "output_tok_s": predicted.output_tok_s,
        "kv_tokens": int(case.kv_tokens),
        "band": {name: list(interval) for name, interval in band.items()},
        "profile": case.context.engine.name,
        **({} if predicted.limit is None else {"limit": predicted.limit}),
        "unpriced": [flag.as_dict() for flag in case.unpriced],
        "queue_grows": grows,
        "warnings": [*case.warnings, *([endless] if grows else [])],
    }
