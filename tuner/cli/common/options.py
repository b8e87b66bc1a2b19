"""The options of all commands, declared once: the same flag means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.choices import EngineName, Fidelity, Objective, SamplerName, ServersChoice
from tuner.cli.common import completion

NEWEST_VERSION = "newest"
# Repeated from models, which is too heavy to load for --help; a test compares them.
ACCEPTANCE = 0.7

Hardware = Annotated[
    str,
    typer.Option(
        "--hardware",
        autocompletion=completion.hardware,
        help="Catalogue name (h200x8, nf5688g7, 2xh100x8, ...) or a hardware.json of sgtune probe.",
        show_default=False,
    ),
]
Isl = Annotated[int, typer.Option("--isl", help="Input tokens per request.", show_default=False)]
Osl = Annotated[int, typer.Option("--osl", help="Output tokens per request.", show_default=False)]
MaybeIsl = Annotated[int | None, typer.Option("--isl", help="Input tokens per request.")]
MaybeOsl = Annotated[int | None, typer.Option("--osl", help="Output tokens per request.")]
Traffic = Annotated[
    Path | None,
    typer.Option("--traffic", help="File of requests instead of lengths and a load: what `sgtune traffic` reads."),
]
RateScale = Annotated[
    float, typer.Option("--rate-scale", help="Of --traffic: so many times as many requests a second.")
]
TrafficMap = Annotated[
    list[str] | None, typer.Option("--map", help="Of --traffic: columns of another form, as in `sgtune traffic`.")
]
TrafficWindow = Annotated[
    str | None,
    typer.Option(
        "--window", help="Of --traffic: how long a launch is measured, by the part most like the whole; default 2m."
    ),
]
RangeRatio = Annotated[
    float, typer.Option("--range-ratio", help="Lengths are uniform from ratio x length to length; 1 fixes them.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", help="Clients in a closed loop.", show_default=False)]
MaybeConcurrency = Annotated[int | None, typer.Option("--concurrency", help="Clients in a closed loop.")]
RequestRate = Annotated[float | None, typer.Option("--request-rate", help="Requests per second.")]
Users = Annotated[int | None, typer.Option("--users", help="Users to serve at --min-user-tok-s each.")]
MinUserTokS = Annotated[float | None, typer.Option("--min-user-tok-s", help="Speed each of --users must see, tok/s.")]
SloTexts = Annotated[
    list[str] | None,
    typer.Option("--slo", help="Latency limit, repeatable: 'ttft:p99<2s', 'tpot:mean<50ms', 'e2e:p95<60s'."),
]
PrefillHardware = Annotated[
    str | None,
    typer.Option(
        "--prefill-hardware",
        autocompletion=completion.hardware,
        help="Machine of the prefill servers, with --decode-hardware and without --hardware.",
    ),
]
DecodeHardware = Annotated[
    str | None,
    typer.Option(
        "--decode-hardware",
        autocompletion=completion.hardware,
        help="Machine of the decode servers, with --prefill-hardware.",
    ),
]
GpuPrice = Annotated[
    float | None,
    typer.Option("--cost-per-gpu-hour", help="Price of a GPU-hour: the plan adds the cost of a million tokens."),
]
ApiPriceInput = Annotated[
    float | None, typer.Option("--api-price-input", help="An API's price of a million input tokens, to compare with.")
]
ApiPriceOutput = Annotated[
    float | None, typer.Option("--api-price-output", help="The same of a million output tokens.")
]
Servers = Annotated[
    ServersChoice,
    typer.Option("--servers", help="Servers that do both phases (mixed), prefill and decode apart (pd), or any."),
]
FleetServers = Annotated[
    ServersChoice | None,
    typer.Option(
        "--servers",
        help="Tune whole deployments behind a router: copies of servers that do both phases (mixed), prefill and "
        "decode apart (pd), or any; without it one server is tuned.",
    ),
]
SglangVersion = Annotated[
    str,
    typer.Option(
        "--sglang-version",
        autocompletion=completion.sglang_version,
        help="SGLang release to plan for, as in 0.5.12.",
    ),
]
Mtp = Annotated[bool, typer.Option("--mtp/--no-mtp", help="Consider multi-token prediction.")]
MtpAcceptance = Annotated[
    float | None,
    typer.Option(
        "--mtp-acceptance",
        help=f"Probability that a drafted token is accepted; default: --profile's, else {ACCEPTANCE}.",
    ),
]
ExpertSkew = Annotated[
    float | None,
    typer.Option("--expert-skew", help="Log-spread of expert popularity (fitted: 0.37)."),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="A name of `sgtune models`, a config.json or its folder; default DeepSeek-R1."),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model-path",
        help="Model path written into launch commands (a folder or a hub name); default: what --model names.",
        show_default=False,
    ),
]
Profile = Annotated[
    Path | None, typer.Option("--profile", help="Engine profile file to use instead of the shipped ones.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Show memory, step breakdown and every rejection.")]
PlanOut = Annotated[Path | None, typer.Option("--out", help="Write the JSON document to this file too.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]

ObjectiveChoice = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        help="What to improve: a rate or TPOT at --concurrency, users at --min-user-tok-s, goodput at --request-rate. "
        "Default output_tok_s; under --traffic goodput, or TPOT.",
    ),
]
CostPerGpuHour = Annotated[
    float | None,
    typer.Option("--cost-per-gpu-hour", help="Cost of a GPU-hour, any currency, for output_tok_s_per_cost."),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="Where configurations run: simulated (virtual time), emulated (our own server in real time), local (an "
        "interpreter with sglang), docker (an image).",
        show_default=False,
    ),
]
PointTime = Annotated[str, typer.Option("--point-time", help="Minimum time per point: 10s, 1m.")]
SmokeText = Annotated[
    str | None,
    typer.Option("--smoke", help="PROMPT=EXPECTED: a server whose answer lacks EXPECTED counts as broken."),
]
Python = Annotated[str, typer.Option("--python", help="Interpreter with sglang, for --engine local.")]
Image = Annotated[str | None, typer.Option("--image", help="Image with sglang, for --engine docker.")]
ServerFlags = Annotated[
    list[str] | None,
    typer.Argument(help="SGLang flags for every launch, verbatim, after `--`.", show_default=False),
]
WorldFile = Annotated[
    Path | None, typer.Option("--world", help="World file: the truth of the simulated and emulated engines.")
]
Trials = Annotated[int, typer.Option("--trials", help="Launches to spend.")]
Confirm = Annotated[
    int,
    typer.Option(
        "--confirm",
        help="Launch so many of the best, and the baseline, once more at the end (beyond --trials); 0: none.",
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option("--parallel", help="Launches in flight at once; default: one, with --cluster one a node."),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="Launch on the nodes of a Ray cluster: auto, HOST:PORT, or a file of sgtune cluster."
    ),
]
SpacePath = Annotated[
    Path | None,
    typer.Option("--space", help="TOML file that narrows, fixes or extends the knobs varied (docs/tuner.md)."),
]
Budget = Annotated[str | None, typer.Option("--budget", help="Engine time to spend: 45m, 4h.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of sampler and simulated engine.")]
Sampler = Annotated[
    SamplerName | None,
    typer.Option("--sampler", help="Sampler after the seeds; default: model with scikit-learn here, else tpe."),
]
FidelityChoice = Annotated[
    Fidelity,
    typer.Option(
        "--fidelity",
        help="slice: try configurations on a slice of the model first, launch the promising ones in full "
        "(docs/fidelity.md).",
    ),
]
Run = Annotated[str | None, typer.Option("--run", autocompletion=completion.run, help="Name of the run folder.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be launched; write nothing.")]
