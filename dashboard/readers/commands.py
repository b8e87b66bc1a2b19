"""Sentences: what a page answers before it shows anything."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from dashboard.readers.fleets import clients_of, running_in_all
from dashboard.readers.runs import RunView, Status
from planner.plans.make import Plan
from planner.sglang.secret_flags import without_secrets
from tuner.evidence.live_state import resumed
from tuner.evidence.trial import TrialRecord


def amount(count: float, one: str, many: str | None = None) -> str:
    """Return a count with its noun: '1 node', '1,024 clients'."""
    return f"{count:,.0f} {one if count == 1 else many or one + 's'}"


def percent(share: float, decimals: int = 0) -> str:
    """Return a signed share in percent, not to be broken over two lines: '+178 %'."""
    return f"{100 * share:+.{decimals}f}\u00a0%"


def duration(seconds: float) -> str:
    """Return a duration as a person says it: '42 s', '3.3 min', '54 min', '2.1 h'."""
    for unit, length_s in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length_s:
            count = seconds / length_s
            return f"{count:.0f} {unit}" if count >= 10.0 else f"{count:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def plan_answer(plan: Plan) -> str:
    """Return the answer to a plan's question in one sentence."""
    best, load = plan.best, _asked(plan)
    if best is None:
        short = plan.shortage_gib
        by = f": every layout is at least {short:.1f} GiB short per GPU" if short else ""
        more = f" {plan.node_answer}." if plan.node_answer else ""
        return f"{load} do not fit on {plan.question.hardware.name}{by}.{more}"
    prediction, nodes = best.prediction, amount(plan.nodes, "node")
    nodes = "one node" if plan.nodes == 1 else nodes
    if best.servers > 1 or best.prefill is not None:
        nodes = f"{best.name} on {nodes}"
    waiting = "" if prediction.queue_grows else f" ({prediction.user_tok_s_with_wait:.1f} with the wait)"
    speed = f"{prediction.user_tok_s:.1f} tok/s each{waiting}; KV headroom {best.ledger.headroom_gib:,.0f} GiB"
    more = " per server" if plan.replicas > 1 else ""
    if plan.meets_target:
        fit = "fits" if load.startswith("1 ") else "fit"
        at_once = ""
        running, clients = running_in_all(best), clients_of(plan)
        if running < 0.98 * clients:
            at_once = f", {running:,.0f} of {clients:,} at once"
        return f"{load} {fit} on {nodes} at {speed}{more}{at_once}."
    missed = "; ".join(best.misses) or "the rate or speed asked is out of reach"
    return f"Target unreachable: {missed}. The nearest, {best.name}, serves {load} at {speed}{more}."


def _asked(plan: Plan) -> str:
    question = plan.question
    if question.request_rate is not None:
        return f"{question.request_rate:g} requests/s ({clients_of(plan):,} in flight)"
    if question.users is not None:
        return amount(question.users, "user")
    return amount(clients_of(plan), "client")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run is: search launches done and asked, engine seconds spent, seconds it may still take."""

    launches: int
    asked: int | None
    spent_s: float
    budget_s: float | None
    eta_s: float | None


def progress_of(run: RunView) -> RunProgress:
    """Return how far a run is. The estimate is launches to go times what a launch took, within the budget."""
    searched = [record for record in run.launched if record.repeats is None]
    spent_s, live = sum(record.spent_s for record in run.records), run.live
    launches_asked, budget_s = (live.trials, live.budget_s) if live else (None, None)
    eta_s = None
    if run.running and live and run.launched:
        again = live.confirm + 1 if live.confirm else 0
        to_go = max(0, live.trials - len(searched)) + max(0, again - (len(run.launched) - len(searched)))
        eta_s = to_go * spent_s / len(run.launched)
        if budget_s is not None:
            eta_s = min(eta_s, max(0.0, budget_s - spent_s))
    return RunProgress(launches=len(searched), asked=launches_asked, spent_s=spent_s, budget_s=budget_s, eta_s=eta_s)


def ceiling_of(run: RunView) -> float | None:
    """Return the best rate the model predicts, output tok/s: the plan's best, else the best prediction seen."""
    if run.live and run.live.ceiling_tok_s > 0:
        return run.live.ceiling_tok_s
    predicted = [record.predicted["output_tok_s"] for record in run.records if "output_tok_s" in record.predicted]
    return max(predicted, default=None)


def run_answer(run: RunView) -> str:
    """Return where a run stands in one sentence."""
    progress = progress_of(run)
    of = f" of {progress.asked}" if progress.asked else ""
    best = _best(run)
    if run.status is Status.EMPTY:
        return "Nothing has been launched yet."
    if run.status is Status.RUNNING:
        return f"Running, {progress.launches}{of} launches done: {best}"
    message = run.live.message if run.live and run.status is Status.FINISHED else ""
    how = {Status.FINISHED: "Finished", Status.INTERRUPTED: "Interrupted", Status.FAILED: "Stopped by a failure"}
    after = f" ({message})" if message else f" after {amount(progress.launches, 'launch', 'launches')}"
    return f"{how[run.status]}{after}: {best}"


def _best(run: RunView) -> str:
    best, words = (run.best, "best so far") if run.running else (run.winner.first if run.winner else None, "best is")
    if not run.measured:
        return "nothing is measured yet."
    if best is None or best.target is None:
        return "no configuration that keeps the limits was measured."
    rate = rate_of(run, best)
    gain = gain_of(run, rate)
    over = "" if gain is None or best is run.baseline else f", {percent(gain)} over SGLang's defaults"
    return f"{words} {best.label} with {rate:,.0f} tok/s (trial {best.number}){over}."


def rate_of(run: RunView, record: TrialRecord) -> float:
    """Return a measured configuration's output tok/s over all its launches."""
    mean_rate = next((standing.output_tok_s for standing in run.standings if record in standing.launches), None)
    return mean_rate if mean_rate is not None else record.target.output_tok_s if record.target else 0.0


def gain_of(run: RunView, rate: float) -> float | None:
    """Return a rate over that of SGLang's defaults, less one; None where those were not measured."""
    return None if run.baseline is None else rate / rate_of(run, run.baseline) - 1.0


def tune_command(run: RunView, *, resume: bool) -> str:
    """Return the command line of a run: as it was typed, or of a run that kept no such line, as its folder tells it."""
    if run.live is not None and run.live.command.startswith("sgtune tune"):
        return resumed(run.live.command, run.path) if resume else run.live.command
    manifest = run.manifest
    words = [
        "sgtune",
        "tune",
        "--hardware",
        str(run.path / "hardware.json"),
        "--sglang-version",
        manifest.sglang_version,
    ]
    lengths = [] if manifest.traffic else ["--isl", str(manifest.isl), "--osl", str(manifest.osl)]
    words += [*lengths, *manifest.load_flags]
    words += [] if manifest.range_ratio == 1.0 else ["--range-ratio", f"{manifest.range_ratio:g}"]
    words += [word for limit in manifest.slo for word in ("--slo", limit)]
    words += ["--objective", str(manifest.objective), "--engine", manifest.engine, "--sampler", manifest.sampler]
    words += ["--seed", str(manifest.seed), *([] if manifest.mtp else ["--no-mtp"])]
    words += ["--trials", str(run.live.trials), "--confirm", str(run.live.confirm)] if run.live else []
    words += ["--budget", f"{run.live.budget_s:g}s"] if run.live and run.live.budget_s else []
    words += ["--runs", str(run.path.parent), "--run", run.name, *(["--resume"] if resume else [])]
    words += ["--", *without_secrets(manifest.server_flags)] if manifest.server_flags else []
    return shlex.join(words)


def off_by(record: TrialRecord) -> float | None:
    """Return measured over predicted output rate, less one, where both are known."""
    predicted = record.predicted.get("output_tok_s")
    if record.target is None or not predicted:
        return None
    return record.target.output_tok_s / predicted - 1.0
