"""`sgtune bench`: measure any running SGLang (or OpenAI-compatible) server, with a verdict on every point."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.choices import Arrival, Backend
from tuner.cli.commands.tune import command_line, parse_duration_s
from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from tuner.bench.sweep import BenchQuestion

EXAMPLE = "Example: sgtune bench --url http://127.0.0.1:30000 --isl 1000 --osl 1000 --concurrency 1,16,64"
KEY_VARIABLE = "SGTUNE_API_KEY"
NOT_USABLE = 1


Url = Annotated[str, typer.Option("--url", help="Address of the server.", show_default=False)]
Servers = Annotated[
    list[str] | None,
    typer.Option("--server", help="A server behind the router at --url, repeatable: read beside the total."),
]
Concurrencies = Annotated[str, typer.Option("--concurrency", help="Clients in a closed loop: 1,16,64.")]
Rates = Annotated[str | None, typer.Option("--request-rate", help="Requests per second instead of clients: 0.5,1,2.")]
ArrivalLaw = Annotated[Arrival, typer.Option("--arrival", help="How requests of a rate are spaced.")]
Lognormal = Annotated[
    float | None, typer.Option("--lognormal", help="Spread of the lengths' logarithms; means are --isl, --osl.")
]
LengthsFile = Annotated[Path | None, typer.Option("--lengths", help='Recorded lengths: lines of {"isl": N, "osl": N}.')]
Dataset = Annotated[
    Path | None, typer.Option("--dataset", help="Prompts as text (ShareGPT JSON): what MTP should be measured with.")
]
SharedPrefix = Annotated[int, typer.Option("--shared-prefix", help="Leading tokens all prompts share.")]
Api = Annotated[Backend, typer.Option("--backend", help="Which API to speak.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Model name for the OpenAI APIs; default: the first.")]
UntilKnee = Annotated[bool, typer.Option("--until-knee", help="Find the most clients within the SLOs, by bisection.")]
Longest = Annotated[str, typer.Option("--duration", help="Longest a point may take, after its warm-up.")]
Waves = Annotated[float, typer.Option("--waves", help="Window: requests per client.")]
Vocabulary = Annotated[int, typer.Option("--vocab-size", help="Token ids are drawn below this.")]
Workers = Annotated[int, typer.Option("--workers", help="Load generator processes; 0: as many as it takes.")]
TrafficSeed = Annotated[int, typer.Option("--seed", help="Seed of lengths, arrivals and prompts.")]
Out = Annotated[Path | None, typer.Option("--out", help="Append points as JSON lines (sgtune calibrate reads them).")]
SglangJsonl = Annotated[
    Path | None, typer.Option("--sglang-jsonl", help="Append points in sglang.benchmark.serving's format.")
]
Requests = Annotated[Path | None, typer.Option("--requests", help="Append every request as a JSON line.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Write a throughput-latency plot as HTML.")]
CrossCheck = Annotated[
    str | None,
    typer.Option("--cross-check", help="Interpreter with sglang: run sglang.benchmark.serving beside each point."),
]


def bench(
    url: Url,
    isl: Annotated[int, typer.Option("--isl", help="Input tokens per request.")] = 1000,
    osl: Annotated[int, typer.Option("--osl", help="Output tokens per request.")] = 1000,
    concurrency: Concurrencies = "1,16,64",
    request_rate: Rates = None,
    arrival: ArrivalLaw = Arrival.POISSON,
    range_ratio: options.RangeRatio = 1.0,
    lognormal: Lognormal = None,
    lengths: LengthsFile = None,
    dataset: Dataset = None,
    shared_prefix: SharedPrefix = 0,
    traffic: options.Traffic = None,
    rate_scale: options.RateScale = 1.0,
    map: options.TrafficMap = None,
    backend: Api = Backend.SGLANG,
    model: ModelName = None,
    slo: options.SloTexts = None,
    until_knee: UntilKnee = False,
    point_time: options.PointTime = "10s",
    duration: Longest = "10m",
    waves: Waves = 5.0,
    vocab_size: Vocabulary = 32_000,
    workers: Workers = 0,
    seed: TrafficSeed = 0,
    out: Out = None,
    sglang_jsonl: SglangJsonl = None,
    requests: Requests = None,
    plot: Plot = None,
    cross_check: CrossCheck = None,
    server: Servers = None,
    json: options.Json = False,
) -> None:
    """Measure a running server: closed or open loop, steady-state windows, and a verdict on every point.

    With --traffic: a file of requests is sent at its times, with prompts that share what they share there.
    """
    from hwprobe.errors import InputError
    from models.workload import Slo, Workload
    from tuner.bench.sweep import BenchQuestion
    from tuner.cli.under_traffic.bench_traffic import BenchAsked, bench_traffic

    if traffic is not None:
        if request_rate or lognormal or lengths or dataset or shared_prefix or until_knee or cross_check:
            raise InputError(
                "--traffic says what is sent and when: leave out --request-rate, --lognormal, --lengths, --dataset, "
                "--shared-prefix, --until-knee and --cross-check"
            )
        traffic_options = BenchAsked(
            url=url, traffic=traffic, rate_scale=rate_scale, map=map, backend=backend, model=model, slo=slo,
            most_s=parse_duration_s(duration, "--duration"), vocabulary=vocab_size, seed=seed,
            key=os.environ.get(KEY_VARIABLE), out=out,
        )  # fmt: skip
        if not bench_traffic(traffic_options, json=json):
            raise typer.Exit(NOT_USABLE)
        return
    if rate_scale != 1.0 or map:
        raise InputError("--rate-scale and --map speak of --traffic: name the file of requests")
    question = BenchQuestion(
        url=url, workload=Workload.checked(isl, osl, 1, range_ratio), concurrency=concurrency,
        request_rate=request_rate, arrival=arrival, lognormal=lognormal, lengths=lengths, dataset=dataset,
        shared_prefix=shared_prefix, backend=backend, model=model, slos=tuple(Slo.parse(text) for text in slo or []),
        until_knee=until_knee, point_s=parse_duration_s(point_time, "--point-time"),
        most_s=parse_duration_s(duration, "--duration"), waves=waves, vocabulary=vocab_size, workers=workers, seed=seed,
        out=out, sglang_jsonl=sglang_jsonl, requests=requests, plot=plot, cross_check=cross_check,
        command=command_line(), servers=tuple(server or ()), key=os.environ.get(KEY_VARIABLE),
    )  # fmt: skip
    _bench(question, json=json)


def _bench(question: BenchQuestion, *, json: bool) -> None:
    from tuner.bench.sweep import run_bench
    from tuner.cli.views.bench_view import BenchScreen, show_bench

    try:
        with BenchScreen(console(stderr=True)) as screen:
            answer = run_bench(question, screen)
    except KeyboardInterrupt:
        typer.echo("interrupted; points already measured are in the files you named", err=True)
        raise typer.Exit(130) from None
    if json:
        print_json(answer.document())
    else:
        show_bench(answer, console())
    if not answer.usable:
        raise typer.Exit(NOT_USABLE)
