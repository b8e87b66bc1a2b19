"""`sgtune tune`: launch, measure, learn, and end with the best configuration and its launch files."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tuner.choices import SIMULATED_ENGINES, EngineName, Fidelity, Objective, SamplerName
from tuner.cli.common import options
from tuner.cli.common.terminal import console, print_json

if TYPE_CHECKING:
    from models.traffic.traced_workload import TracedLoad
    from tuner.run.loop import Loop
    from tuner.run.question import TuneQuestion
    from tuner.run.setup import Prepared

# Users looked for where --users does not say how many are wanted: more than any one server carries.
MOST_USERS = 4096
# The stretch of a trace that one launch is measured under.
DEFAULT_WINDOW = "2m"
EXAMPLE = (
    "Example: sgtune tune --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024 --engine simulated --trials 12"
)


def tune(
    hardware: options.Hardware,
    engine: options.Engine,
    isl: options.MaybeIsl = None,
    osl: options.MaybeOsl = None,
    concurrency: options.MaybeConcurrency = None,
    server_flags: options.ServerFlags = None,
    slo: options.SloTexts = None,
    objective: options.ObjectiveChoice = None,
    traffic: options.Traffic = None,
    rate_scale: options.RateScale = 1.0,
    map: options.TrafficMap = None,
    window: options.TrafficWindow = None,
    request_rate: options.RequestRate = None,
    users: options.Users = None,
    min_user_tok_s: options.MinUserTokS = None,
    cost_per_gpu_hour: options.CostPerGpuHour = None,
    point_time: options.PointTime = "10s",
    smoke: options.SmokeText = None,
    python: options.Python = "python3",
    image: options.Image = None,
    world: options.WorldFile = None,
    space: options.SpacePath = None,
    trials: options.Trials = 12,
    confirm: options.Confirm = 3,
    parallel: options.Parallel = None,
    cluster: options.Cluster = None,
    servers: options.FleetServers = None,
    budget: options.Budget = None,
    seed: options.Seed = 0,
    sampler: options.Sampler = None,
    fidelity: options.FidelityChoice = Fidelity.WHOLE,
    run: options.Run = None,
    runs: options.Runs = Path("runs"),
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    sglang_version: options.SglangVersion = options.NEWEST_VERSION,
    range_ratio: options.RangeRatio = 1.0,
    mtp: options.Mtp = True,
    mtp_acceptance: options.MtpAcceptance = None,
    expert_skew: options.ExpertSkew = None,
    model: options.Model = None,
    model_path: options.ModelPath = None,
    profile: options.Profile = None,
    json: options.Json = False,
) -> None:
    """Find the best configuration with few launches: physics first, then measurements.

    With --traffic: under a file of requests, with its timing, sessions and shared prefixes.
    """

    from hwprobe.errors import InputError
    from planner.inputs import read_question
    from tuner.engines.world import load_world
    from tuner.run.question import TuneQuestion
    from tuner.search.space_file import read_space_file

    loads = {"--isl": isl, "--osl": osl, "--concurrency": concurrency, "--request-rate": request_rate,
             "--users": users, "--min-user-tok-s": min_user_tok_s,
             "--range-ratio": None if range_ratio == 1.0 else range_ratio}  # fmt: skip
    traced = _traced(traffic, loads, rate_scale=rate_scale, map=map, window=window)
    if traced is not None:
        isl, osl, request_rate = traced.lengths_and_rate
    if isl is None or osl is None:
        raise InputError("say how long requests are with --isl and --osl, or give a file of them with --traffic")
    objective = objective or (Objective.OUTPUT_TOK_S if traced is None else Objective.GOODPUT)
    plan_question = read_question(
        hardware=hardware, model=model, sglang_version=sglang_version, slo=slo, profile=profile, isl=isl, osl=osl,
        range_ratio=range_ratio, concurrency=concurrency, request_rate=request_rate, min_user_tok_s=min_user_tok_s,
        users=MOST_USERS if users is None and objective is Objective.USERS else users,
        mtp=mtp, acceptance=mtp_acceptance, sigma=expert_skew, model_path=model_path,
    )  # fmt: skip
    narrowed = read_space_file(space) if space else None
    question = TuneQuestion(
        plan=plan_question, objective=objective, engine=engine, world=load_world(world), trials=trials, confirm=confirm,
        parallel=parallel, cluster=cluster, servers=servers,
        space=narrowed, server_flags=(*(narrowed.flags if narrowed else ()), *(server_flags or ())),
        budget_s=parse_duration_s(budget) if budget else float("inf"), seed=seed, sampler=sampler or default_sampler(),
        smoke=smoke, fidelity=fidelity, run=run, runs=runs, resume=resume, python=python, image=image,
        point_s=parse_duration_s(point_time, "--point-time"), cost_per_gpu_hour=cost_per_gpu_hour, traffic=traced,
    )  # fmt: skip
    if servers is not None:
        from tuner.cli.deployments.tune_fleet import tune_fleet

        tune_fleet(question, command_line(), dry_run=dry_run, json=json)
        return
    _tune(question, dry_run=dry_run, json=json)


def _traced(
    traffic: Path | None, loads: dict[str, Any], *, rate_scale: float, map: list[str] | None, window: str | None
) -> TracedLoad | None:
    """Return the stretch of the trace to tune under, None without --traffic."""
    from tuner.cli.under_traffic.tune_traffic import (
        WindowAsked,
        refuse_beside_traffic,
        refuse_without_traffic,
        traced_load,
    )

    if traffic is None:
        refuse_without_traffic({"--rate-scale": rate_scale != 1.0, "--map": map, "--window": window})
        return None
    refuse_beside_traffic(loads)
    window_s = parse_duration_s(window or DEFAULT_WINDOW, "--window")
    return traced_load(WindowAsked(traffic=traffic, rate_scale=rate_scale, map=map, window_s=window_s))


def _tune(question: TuneQuestion, *, dry_run: bool, json: bool) -> None:
    from tuner.cli.views.tune_view import LiveReporter, show_dry_run
    from tuner.cluster.check_up import first_look
    from tuner.run.dry_run import dry_run_document
    from tuner.run.engine_factory import preflight
    from tuner.run.live_writer import LiveWriter
    from tuner.run.setup import open_loop, prepare

    prepared = prepare(question)
    if dry_run:
        document = dry_run_document(prepared)
        if json:
            print_json(document)
        else:
            show_dry_run(document, console())
        return
    preflight(question)
    ceiling_tok_s = prepared.plan.best.prediction.output_tok_s if prepared.plan.best else 0.0
    screen = console(stderr=True)
    reporter = LiveReporter(screen, question.trials)
    loop, torn = open_loop(prepared, reporter)
    try:
        if loop.screen is not None:
            loop.screen.shown = reporter.slice
        if torn:
            screen.print("note: the last record was incomplete and has been cut off; its trial runs again")
        if question.cluster is not None and question.engine not in SIMULATED_ENGINES:
            measure = question.engine is EngineName.LOCAL  # an emulated server is as fast as its world says
            first_look(
                question.cluster,
                loop.folder.path,
                measure=measure,
                tell=lambda note: screen.print(f"note: {note}", markup=False),
            )
        with reporter, LiveWriter(loop, ceiling_tok_s, command_line()):
            reporter.begin(loop, prepared)
            _run(loop)
        _finish(loop, prepared, json=json)
    finally:
        loop.close()


def _run(loop: Loop) -> None:
    """Run the loop; an interrupt (Ctrl-C, or SIGTERM of a batch system) leaves a run that --resume continues."""
    from tuner.evidence.live_state import resumed

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        loop.run()
    except KeyboardInterrupt:
        again = resumed(command_line(), loop.folder.path)
        typer.echo(f"interrupted after {len(loop.records)} trials; continue with --resume:\n{again}", err=True)
        raise typer.Exit(130) from None


def _finish(loop: Loop, prepared: Prepared, *, json: bool) -> None:
    from planner.launch_files.parameters import Parameters
    from planner.launch_files.targets import Target, possible_targets
    from tuner.cli.views.tune_result import show_calibrated, show_result
    from tuner.evidence.standings import winner_of
    from tuner.launch_files.trial_export import ExportedTrial, trial_export
    from tuner.run.result import RunEnd, result_document, written_parts

    manifest = prepared.question.manifest()
    model_path = prepared.question.model_path
    best = winner_of(loop.records)
    exports: list[Path] = []
    if best is not None:
        parameters = Parameters(model_path=model_path)
        trial = ExportedTrial(record=best.first, records=loop.records, manifest=manifest)
        winner = trial_export(trial, parameters, command_line())
        possible = [t for t in possible_targets(winner.spec, parameters) if t in (Target.BASH, Target.YAML)]
        exports = winner.write(loop.folder.export_folder, possible)
    calibrated = _recalibrate(loop, prepared)
    end = RunEnd(
        stop_reason=loop.stop_reason, exports=tuple(exports), calibrated=calibrated, parallel=loop.airspace.slots,
        elapsed_s=loop.airspace.elapsed_s,
        traffic=prepared.question.traffic.document() if prepared.question.traffic else None,
    )  # fmt: skip
    document = result_document(loop.folder.path, manifest, loop.records, end)
    loop.folder.write("result.json", written_parts(document))
    if json:
        print_json(document)
    else:
        del document  # of a run of hundreds of thousands of records it is large
        show_result(loop, manifest, exports, console(), model_path=model_path)
        show_calibrated(calibrated, console())
    if best is None:
        raise typer.Exit(3)


def _recalibrate(loop: Loop, prepared: Prepared) -> dict[str, Any] | None:
    """Write the profile learned from the run; return its path and a sentence, None if no trial was measured.

    Where the points do not fit the model no profile is written, and `refused` says why.
    """
    from hwprobe.errors import InputError
    from models.engine.profile import save_engine_profile
    from tuner.calibrate.learned import learn_from_run, sentence

    try:
        calibration = learn_from_run(loop.records, prepared.space.workload, prepared.plan.context)
    except InputError as error:
        return {"profile": None, "refused": str(error)}
    if calibration is None:
        return None
    path = loop.folder.path / "profile.json"
    save_engine_profile(calibration.profile, path)
    return {
        "profile": str(path),
        "mtp_acceptance": calibration.acceptance,
        "rms_decode": calibration.rms_decode,
        "sentence": sentence(calibration),
    }


def command_line() -> str:
    """Return the command as typed, for the provenance of what it writes; secrets are left out."""
    from planner.sglang.secret_flags import without_secrets

    return shlex.join(["sgtune", *without_secrets(sys.argv[1:])])


def default_sampler() -> SamplerName:
    """Return the best sampler that can run here, and say what a better one would need."""
    if find_spec("sklearn") is not None:
        return SamplerName.MODEL
    typer.echo(
        "note: without scikit-learn Optuna's TPE proposes; better, in the checkout: pip install -e '.[tune]'", err=True
    )
    return SamplerName.TPE


def parse_duration_s(text: str, flag: str = "--budget") -> float:
    """Parse '45m', '4h', '1h30m', '90s'. Raises InputError with an example."""
    from hwprobe.errors import InputError

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not match or not any(match.groups()):
        raise InputError(f"{flag} is '{text}'; write a duration as in {flag} 4h, {flag} 1h30m or {flag} 90s")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
