"""How the answer of `sgtune check` looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from models.config import ServerConfig
from models.costs.memory import MemoryLedger
from planner.check.answer import CheckAnswer
from planner.check.verdicts import ServerVerdict
from planner.rules import UNCONNECTED_NODES
from planner.violation import Severity, Violation

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
VERDICTS = {
    "runs": "[bold green]It runs[/]",
    "refused": "[bold red]SGLang refuses it[/]",
    "fails": "[bold red]It starts, and fails[/]",
    "does not fit": "[bold red]It does not fit[/]",
}
ALONE = "[bold yellow]It runs, once its nodes find each other[/]"
NOTHING = ServerConfig(tp_size=1)  # values that differ from it were typed, under any name of the release
# Flags that settle a value by another name.
SET_BY = {
    "attn_dp_size": ("dp_size",),
    "decode_cuda_graph": (
        "disable_cuda_graph", "disable_decode_cuda_graph", "cuda_graph_backend_decode", "cuda_graph_config",
    ),
    "prefill_cuda_graph": (
        "disable_cuda_graph", "disable_prefill_cuda_graph", "cuda_graph_backend_prefill", "cuda_graph_config",
        "enable_piecewise_cuda_graph", "disable_piecewise_cuda_graph",
    ),
}  # fmt: skip
BAR = 48
SHOWN = (
    "mem_fraction_static", "chunked_prefill_size", "cuda_graph_max_bs_decode", "max_running_requests",
    "attention_backend", "page_size", "kv_cache_dtype", "moe_runner_backend", "schedule_policy",
    "schedule_conservativeness", "ep_size", "attn_dp_size", "speculative_num_steps", "speculative_eagle_topk",
    "speculative_num_draft_tokens", "prefill_cuda_graph", "decode_cuda_graph", "context_length",
)  # fmt: skip


def show_check(answer: CheckAnswer, screen: Console) -> None:
    """Print the verdict first, then violations, resolved values, memory, speed and advice."""
    question = answer.question
    screen.print(
        f"{_verdict(answer)}: SGLang {question['sglang_version']} on {escape(question['hardware'])}, "
        f"{escape(answer.checked.resolved.config.label)}"
    )
    screen.print(f"model: {escape(question['model'])}, {answer.served.basis}", soft_wrap=True)
    for violation in answer.violations:
        if violation.severity is not Severity.NOTE:
            screen.print(_line(violation), soft_wrap=True)
    _show_unpriced(answer, screen)
    screen.print(_resolved_table(answer))
    changed = [violation for violation in answer.violations if violation.severity is Severity.NOTE]
    if changed:
        screen.print("what SGLang changes by itself:", style="bold")
    for violation in changed:
        screen.print(_line(violation), soft_wrap=True)
    if answer.weighed is not None:
        screen.print(waterfall(answer.weighed.ledger))
        _show_capacity(answer, screen)
    _show_prediction(answer, screen)
    if answer.advice:
        screen.print("advice, each tried, most tok/s under the limits first:", style="bold")
    for advice in answer.advice:
        screen.print(f"  {escape(advice.text)}", soft_wrap=True)
    for assumption in answer.assumed:
        screen.print(
            f"[yellow]assumed:[/] {escape(f'{assumption.name} is {assumption.value}: {assumption.why}')}",
            soft_wrap=True,
        )
    for note in answer.notes:
        screen.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _verdict(answer: CheckAnswer) -> str:
    unconnected = any(violation.rule in UNCONNECTED_NODES for violation in answer.violations)
    return ALONE if unconnected and answer.verdict == "runs" else VERDICTS[answer.verdict]


def _show_unpriced(answer: CheckAnswer, screen: Console) -> None:
    for flag in answer.unpriced:
        effect = f"may change {flag.changes}: {flag.effect}"
        screen.print(f"  [yellow]unpriced[/] {escape(flag.written)} {escape(effect)}.", soft_wrap=True)
    if answer.hangs_on:
        names = ", ".join(dict.fromkeys(flag.flag for flag in answer.hangs_on))
        screen.print(
            f"  [yellow]The verdict hangs on[/] {escape(names)}: the memory below leaves it out.", soft_wrap=True
        )


def show_servers(verdicts: Sequence[ServerVerdict], screen: Console, together: Sequence[Violation] = ()) -> None:
    """Print one line for each server of a file, then the violations between them; the worst is shown in full after
    them.
    """
    screen.print(f"{len(verdicts)} servers; the worst decides and is shown in full:")
    for verdict in verdicts:
        verdict_text = VERDICTS[verdict.answer.verdict] if verdict.answer else "[bold red]No verdict[/]"
        label = verdict.answer.checked.resolved.config.label if verdict.answer else ""
        screen.print(
            f"  line {verdict.launch.line}, {escape(verdict.launch.role)}: {verdict_text} {escape(label)}".rstrip()
        )
    for violation in together:
        screen.print(_line(violation))


def _line(violation: Violation) -> str:
    style = STYLES[violation.severity]
    fix = "" if violation.fix == "nothing to do" else f" [cyan]{escape(violation.fix)}[/]"
    return f"  [{style}]{violation.severity}[/] {violation.rule}: {escape(violation.message)}.{fix}"


def _resolved_table(answer: CheckAnswer) -> Table:
    """Return the values that matter, what was typed marked as such, and the reason of each default."""
    resolved = answer.checked.resolved
    table = Table(title="resolved values", title_justify="left")
    table.add_column("field")
    table.add_column("value", justify="right")
    table.add_column("why")
    for name in SHOWN:
        value = resolved.fields.get(name)
        if value is None and name.startswith("speculative"):
            continue
        reason = resolved.reasons.get(name) or resolved.reasons.get("speculative" if "speculative" in name else name)
        why = reason or _typed(answer, name) or "SGLang's default"
        shown = "settled after loading" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        table.add_row(name, escape(shown), escape(why))
    return table


def _typed(answer: CheckAnswer, name: str) -> str | None:
    """Say that a value was typed, and by which flag where it has another name; None where it was not."""
    values = answer.checked.arguments.values
    if by := [f"--{dest.replace('_', '-')}" for dest in SET_BY.get(name, ()) if dest in values]:
        return f"typed: {', '.join(by)}"
    is_typed = name in values or getattr(answer.checked.typed, name, None) not in (None, getattr(NOTHING, name, None))
    return "typed" if is_typed else None


def waterfall(ledger: MemoryLedger) -> Table:
    """Return one GPU's memory from the empty card down to what stays free, each owner where the last one ended."""
    table = Table(title=f"memory of one GPU, {ledger.card_gib:.1f} GiB, and of one node", title_justify="left")
    table.add_column("owner")
    table.add_column("GiB", justify="right")
    table.add_column("GiB a node", justify="right")
    table.add_column("")
    used, scale = 0.0, BAR / max(ledger.card_gib, ledger.card_gib - min(0.0, ledger.free_gib))
    node = ledger.per_node_gib()
    for owner, gib in ledger.per_gpu_gib.items():
        start, width = round(max(0.0, used) * scale), round(abs(gib) * scale)
        style = "red" if gib < 0 else "green" if owner in ("KV pool", "free") else "blue"
        bar = " " * max(0, start if gib >= 0 else start - width) + "█" * max(width, 1)
        table.add_row(owner, f"{gib:.2f}", f"{node[owner]:.1f}", Text(bar[:BAR], style=style))
        used += gib
    return table


def _show_capacity(answer: CheckAnswer, screen: Console) -> None:
    weighed, question = answer.weighed, answer.question
    assert weighed is not None
    ledger = weighed.ledger
    screen.print(
        f"KV cache: [bold]{ledger.kv_tokens_per_rank:,} tokens a rank[/], {ledger.kv_tokens:,} in all: "
        f"{weighed.most_requests:,} requests of {question['isl']:,} + {question['osl']:,} tokens at once."
    )


def _show_prediction(answer: CheckAnswer, screen: Console) -> None:
    prediction, question = answer.prediction, answer.question
    if prediction is None:
        screen.print(f"No speed is predicted: {answer.unpredicted}.")
        return
    low, high = prediction.band["output_tok_s"]
    screen.print(
        f"{question['concurrency']:,} clients, {question['isl']:,} in / {question['osl']:,} out: "
        f"[bold]{prediction.output_tok_s:,.0f} tok/s[/] (90 % band {low:,.0f} to {high:,.0f}), "
        f"TPOT {prediction.tpot_ms['mean']:.1f} ms, TTFT {prediction.ttft_ms['mean']:,.0f} ms mean, "
        f"limited by {prediction.limiting}."
    )
    for miss in answer.misses:
        screen.print(f"  [yellow]limit[/] {escape(miss)}")
