"""How a plan looks in a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.costs.memory import MemoryLedger
from models.serving.estimate import LIMIT_NAMES, Prediction
from planner.fleets.plan_document import deployment_of
from planner.launch import launch_spec
from planner.plans.candidates import Candidate
from planner.plans.document import latency_text, latency_words
from planner.plans.evidence import evidence_for
from planner.plans.make import Plan
from planner.plans.offers import ACCURACY
from planner.plans.search import most_answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the ranked table."""

    heading: str
    text: Callable[[Candidate], str]
    in_narrow: bool = False


# Why layouts were skipped, in words; a rule that has none is named.
SKIPPED = {"pp-with-mtp": "PP and MTP are incompatible", "does not fit": "they do not fit"}
# A terminal narrower than this gets the columns that decide.
WIDE = 134
COLUMNS = (
    Column(heading="mem frac", text=lambda c: f"{c.config.mem_fraction_static:.2f}"),
    Column(heading="chunk", text=lambda c: f"{c.config.chunked_prefill_size}"),
    Column(heading="graph bs", text=lambda c: f"{c.config.cuda_graph_max_bs_decode}"),
    Column(heading="tok/s", text=lambda c: f"{c.output_tok_s:,.0f}", in_narrow=True),
    Column(heading="per user", text=lambda c: f"{c.prediction.user_tok_s:.1f}", in_narrow=True),
    Column(heading="TPOT ms", text=lambda c: f"{c.prediction.tpot_ms['mean']:.1f}"),
    Column(heading="TTFT ms", text=lambda c: latency_text(c.prediction.ttft_ms["mean"]), in_narrow=True),
    Column(heading="TTFT p99", text=lambda c: latency_text(c.prediction.ttft_ms["p99"])),
    Column(heading="running", text=lambda c: f"{c.prediction.running_requests:,.0f}"),
    Column(heading="KV tokens", text=lambda c: f"{c.ledger.kv_tokens:,}"),
)


def show_plan(plan: Plan, screen: Console, *, explain: bool) -> None:
    """Print the answer first, then the table, then reasons and warnings."""
    question, machine = plan.question, plan.context.machine
    screen.print(
        f"[bold]{escape(question.arch.name)}[/] on {escape(question.hardware.name)} "
        f"({machine.gpu_count} x {machine.memory_gib:.1f} GiB, {machine.hbm_bytes_s / 1e12:.2f} TB/s each), "
        f"SGLang {question.version}, {question.isl:,} in / {question.osl:,} out, {_asked(plan)}"
    )
    best = plan.best
    if best is None:
        _show_misfit(plan, screen)
    else:
        _show_answer(plan, best, screen)
        screen.print(candidate_table(plan, screen.width))
        if len(plan.found.candidates) > 1:
            screen.print("why the others rank lower:", style="bold")
        for index, candidate in enumerate(plan.found.candidates[1:], start=2):
            screen.print(f"{index:3}  {candidate.name:<24} {candidate.why}", markup=False)
        screen.print("launch command for #1:", style="bold")
        lines = launch_lines(best, question.version, question.served_path)
        for line in [*lines, *_shared_node(plan)]:
            screen.print(line, soft_wrap=True, markup=False)
    if explain and best is not None:
        screen.print(ledger_table(best.ledger))
        screen.print(breakdown_table(plan.found.candidates[:3]))
        screen.print("flags of each:", style="bold")
        for index, candidate in enumerate(plan.found.candidates, start=1):
            screen.print(f"{index:3}  {shlex.join(plan.argv(candidate))}", soft_wrap=True, markup=False)
    _show_rejected(plan, screen, explain)
    _show_published(plan, screen)
    for warning in plan.warnings:
        screen.print(f"[yellow]note:[/] {escape(warning)}")


def _asked(plan: Plan) -> str:
    question = plan.question
    if question.request_rate is not None:
        return f"{question.request_rate:g} requests/s, Poisson arrivals"
    if question.users is not None:
        return f"{question.users:,} users at {question.min_user_tok_s:g} tok/s each"
    return f"{plan.question.concurrency or plan.concurrency:,} clients"


def _show_misfit(plan: Plan, screen: Console) -> None:
    shortage = plan.shortage_gib
    if shortage is None:
        reasons = dict.fromkeys(item.reason for item in plan.found.rejected)
        screen.print(
            f"[bold red]No configuration is possible here[/]: {escape(next(iter(reasons), 'nothing to try'))}."
        )
        _show_offers(plan, screen)
        return
    gpus = plan.context.machine.gpu_count
    screen.print(
        f"[bold red]It does not fit[/]: the nearest layout is short of {shortage:.1f} GiB per GPU "
        f"({shortage * gpus:.0f} GiB on the machine)."
    )
    screen.print(plan.node_answer or "Up to eight times as many nodes do not hold it either.")


def _show_offers(plan: Plan, screen: Console) -> None:
    """Print the exports of the model that do run on this hardware."""
    if not plan.offers:
        return
    screen.print("Exports of this model that run on it:")
    for offer in plan.offers:
        screen.print(f"  {escape(offer.sentence)}")
    screen.print(f"Plan one with --model (names: `sgtune models`); {ACCURACY}.")


def _show_answer(plan: Plan, best: Candidate, screen: Console) -> None:
    prediction, ledger = best.prediction, best.ledger
    weights = sum(gib for owner, gib in ledger.per_gpu_gib.items() if owner.startswith("weights"))
    screen.print(
        f"[bold green]It fits[/]: weights {weights:.1f} of {ledger.card_gib:.1f} GiB per GPU. KV cache: "
        f"[bold]{ledger.headroom_gib:.0f} GiB total[/] = [bold]{ledger.kv_tokens:,} tokens[/]; "
        f"{_concurrent(plan, prediction)}."
    )
    low, high = prediction.band["output_tok_s"]
    each = f" in total, {prediction.output_tok_s:,.0f} per server" if best.servers > 1 else " in total"
    screen.print(
        f"[bold]{best.name}[/]{_on_nodes(plan)}: [bold]{best.output_tok_s:,.0f} tok/s[/]{each} "
        f"(90 % band {low:,.0f} to {high:,.0f}), [bold]{prediction.user_tok_s:.1f} tok/s[/] per user "
        f"{_wait(prediction)}, limited by {prediction.limiting}."
    )
    screen.print(f"Evidence: {evidence_for(best.config, plan.context.machine, plan.context.arch).sentence}.")
    if sentence := _prefill_decode(plan):
        screen.print(sentence)
    if not plan.meets_target:
        reason = "; ".join(best.misses) or "the rate or speed asked is out of reach"
        screen.print(
            f"[bold red]Target unreachable[/]: {escape(reason)}. This is the nearest answer{_of_promised(plan)}."
        )


def _of_promised(plan: Plan) -> str:
    """Say for users at a speed what each gets, and how many of them on one server."""
    promised, best = plan.question.min_user_tok_s, plan.best
    if promised is None or best is None or best.prefill is not None:
        return ""
    users = "a user alone on a server" if plan.concurrency == 1 else f"each of {plan.concurrency:,} users on a server"
    return f": {users} gets {best.prediction.user_tok_s:.1f} of {promised:g} tok/s"


def _wait(prediction: Prediction) -> str:
    """Say a user's speed with the wait and the mean TTFT; a queue without end has neither."""
    if prediction.queue_grows:
        return "once it is served; TTFT and the speed with the wait have no steady value: the queue grows"
    return (
        f"({prediction.user_tok_s_with_wait:.1f} with the wait for the first token), "
        f"TTFT {prediction.ttft_ms['mean']:,.0f} ms mean"
    )


def launch_lines(best: Candidate, version: Version, model_path: str) -> list[str]:
    """Return the command of one server of each pool, and the router's where there is one."""
    deployment = deployment_of(best)
    lines = []
    for pool in deployment.pools:
        spec = launch_spec(pool.config, version, model_path=model_path).with_words(pool.own_flags)
        count = f"# {pool.servers} x {pool.role}\n" if deployment.servers > 1 else ""
        lines.append(count + spec.shell_line())
    router = deployment.router_argv
    return lines if router is None else [*lines, "# router\n" + shlex.join(router)]


def _shared_node(plan: Plan) -> list[str]:
    """Say what differs between prefill and decode servers of one node."""
    if plan.nodes != 1 or plan.best is None or plan.best.prefill is None:
        return []
    first = deployment_of(plan.best).pools[0].config.gpu_count
    return [
        f"# All on one node: the second server adds --port 30001 --base-gpu-id {first}, and the router takes\n"
        "# that port, and so on; `sgtune export` writes every server with its own."
    ]


def _prefill_decode(plan: Plan) -> str | None:
    """Say whether prefill and decode apart pay here, where both were planned."""
    mixed = next((c for c in plan.found.candidates if c.prefill is None), None)
    apart = next((c for c in plan.found.candidates if c.prefill is not None), None)
    if mixed is None or apart is None:
        return None
    percent = 100.0 * (apart.output_tok_s / mixed.output_tok_s - 1.0)
    verdict = "pays" if plan.found.candidates.index(apart) < plan.found.candidates.index(mixed) else "does not pay"
    ttft, other_ttft = (latency_words(c.prediction.ttft_ms["mean"]) for c in (apart, mixed))
    return (
        f"Prefill/decode {verdict}: {apart.name} gives {apart.output_tok_s:,.0f} tok/s ({percent:+.0f} %), TTFT "
        f"{ttft}, TPOT {apart.prediction.tpot_ms['mean']:.1f} ms; {mixed.name} {mixed.output_tok_s:,.0f}, "
        f"{other_ttft} and "
        f"{mixed.prediction.tpot_ms['mean']:.1f}. What limits it: {apart.prediction.limiting}."
    )


def _on_nodes(plan: Plan) -> str:
    """Say how many nodes the servers stand on, where there are several of either."""
    return f" on {plan.nodes} node{'s' if plan.nodes > 1 else ''}" if plan.replicas > 1 or plan.nodes > 1 else ""


def _concurrent(plan: Plan, prediction: Prediction) -> str:
    """Say how many requests run concurrently, and what an open loop is sized for."""
    if plan.best is not None and plan.best.prefill is not None:
        return f"[bold]{prediction.running_requests:,.0f}[/] requests decode concurrently on each decode server"
    if prediction.queue_grows:
        on_each = " on each server" if plan.replicas > 1 else ""
        return f"[bold red]the queue grows without end[/]: {most_answered(prediction, plan.load)}{on_each}"
    if prediction.in_flight is None:
        more = " on each server" if plan.replicas > 1 else ""
        return f"[bold]{prediction.running_requests:,.0f} of {plan.concurrency:,}[/] run concurrently{more}"
    return (
        f"[bold]{prediction.in_flight.mean:,.0f}[/] requests in flight on average, {prediction.in_flight.p99:,.0f} at "
        f"the 99th percentile; caps, graphs and memory are sized for {plan.concurrency:,}"
    )


def candidate_table(plan: Plan, width: int) -> Table:
    """Return the ranked table, five columns in a narrow terminal.

    `*` marks the Pareto front of tok/s per GPU against tok/s per user.
    """
    narrow = width < WIDE
    table = Table(title="configurations, best first (* on the Pareto front)", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("layout", no_wrap=True)
    columns = [column for column in COLUMNS if column.in_narrow or not narrow]
    for column in columns:
        table.add_column(column.heading, justify="right")
    front = set(plan.pareto())
    for index, candidate in enumerate(plan.found.candidates):
        rank = f"{index + 1}{'*' if index in front else ''}"
        table.add_row(rank, candidate.name, *(column.text(candidate) for column in columns))
    return table


def ledger_table(ledger: MemoryLedger) -> Table:
    """Return the memory of one GPU by owner, as bars that add up to the card."""
    table = Table(title=f"memory of one GPU, {ledger.card_gib:.1f} GiB", title_justify="left")
    table.add_column("owner")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for owner, gib in ledger.per_gpu_gib.items():
        table.add_row(owner, f"{gib:.2f}", "█" * max(0, round(40 * gib / ledger.card_gib)))
    return table


def breakdown_table(candidates: Iterable[Candidate]) -> Table:
    """Return where the milliseconds of a decode step go, side by side."""
    shown = list(candidates)
    table = Table(title="decode step by cost, ms", title_justify="left")
    table.add_column("cost")
    for candidate in shown:
        table.add_column(candidate.config.label, justify="right")
    for name, words in LIMIT_NAMES.items():
        values = [candidate.prediction.breakdown_ms[name] for candidate in shown]
        if any(value >= 0.005 for value in values):
            table.add_row(words, *(f"{value:.2f}" for value in values))
    table.add_row("step", *(f"{candidate.prediction.step_ms:.2f}" for candidate in shown), style="bold")
    return table


def _show_rejected(plan: Plan, screen: Console, explain: bool) -> None:
    counts = plan.found.rejected_by_reason()
    if counts:
        words = "; ".join(f"{count} layouts skipped: {SKIPPED.get(kind, kind)}" for kind, count in counts.items())
        screen.print(f"{plan.found.evaluated:,} configurations evaluated; {words}", soft_wrap=True)
    else:
        screen.print(f"{plan.found.evaluated:,} configurations evaluated; no layout skipped")
    if explain:
        for item in plan.found.rejected:
            screen.print(f"  {item.config.label}: {item.reason}", markup=False)


def _show_published(plan: Plan, screen: Console) -> None:
    if plan.published is None:
        return
    comparison = plan.published
    screen.print(
        f"[bold]published[/] {comparison.published:,.2f} {comparison.quantity}; "
        f"[bold]predicted[/] {comparison.predicted:,.2f}; "
        f"published over predicted [bold]{comparison.residual_percent:+.1f} %[/] "
        f"({comparison.source}; {comparison.note})"
    )
