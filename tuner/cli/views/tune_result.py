"""How a tuning run looks when it is over: the ranking, the answer, the front, and what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planner.launch_files.parameters import Parameters
from tuner.choices import SIMULATED, Objective
from tuner.evidence.knob_effects import knob_effects, residuals
from tuner.evidence.node_effects import node_effects
from tuner.evidence.standings import BASELINE, RECIPE, Decision, Standing, decide, named
from tuner.evidence.trial import Manifest, TrialOutcome, TrialRecord
from tuner.launch_files.trial_export import spec_of
from tuner.run.loop import Loop
from tuner.run.result import nearest_of, pareto_of
from tuner.search.objective import UNITS

MOST_SENTENCES = 5
MOST_ON_FRONT = 8
MOST_ROWS = 200


def show_result(loop: Loop, manifest: Manifest, exports: Sequence[Path], screen: Console, *, model_path: str) -> None:
    """Print the ranking, the winner with its interval, the gain over the baseline, and the files."""
    screen.print(_ranking(loop.records, manifest))
    infeasible = sum(r.launched and not r.feasible and r.repeats is None for r in loop.records)
    skipped = sum(r.outcome is TrialOutcome.RULED_OUT for r in loop.records)
    screen.print(
        f"{loop.launches} launches ({infeasible} infeasible), {skipped} proposals ruled out without launching, "
        f"{loop.spent_s / 3600:.1f} h of engine time{_side_by_side(loop)}; stopped: {loop.stop_reason}"
    )
    decided = decide(loop.records)
    target = decided.winner.first.target if decided else None
    if decided is None or target is None:
        _show_nearest(loop.records, screen)
        return
    winner = decided.winner
    best = winner.first
    low, high = winner.value_interval
    unit = UNITS[manifest.objective]
    rate = "" if manifest.objective is Objective.OUTPUT_TOK_S else f"{target.output_tok_s:,.0f} output tok/s, "
    stamp = f"{SIMULATED} " if manifest.simulated else ""
    screen.print(
        f"[bold green]{stamp}best[/]: [bold]{escape(best.label)}[/]{escape(_moved(best))} (trial {best.number}), "
        f"{figure(winner.value)} {unit} (95 % interval {figure(low)} to {figure(high)}, "
        f"{_launches(len(winner.launches))}), {rate}{target.user_tok_s:.1f} per user, "
        f"TTFT {target.ttft_ms['mean']:,.0f} ms; measured over predicted {100 * (best.over_predicted - 1):+.1f} %"
    )
    _show_tied(decided, unit, screen)
    _show_gain(winner, loop.records, unit if rate else "tok/s", screen)
    if best.params.get("kv_cache_dtype", "default") != "default":
        screen.print("note: an FP8 KV cache changes what the model computes: compare answers before you rely on it")
    _show_learned(loop.records, screen)
    _show_pareto(loop.records, screen)
    screen.print(spec_of(best, manifest, Parameters(model_path=model_path)).shell_line(), soft_wrap=True, markup=False)
    for path in exports:
        screen.print(f"wrote {path}", markup=False, soft_wrap=True)
    if manifest.simulated:
        screen.print(
            f"{SIMULATED}: the {manifest.engine} engine played world '{manifest.world}'; measure on the machine"
        )


def _side_by_side(loop: Loop) -> str:
    """Say how long launches took that flew at once."""
    air = loop.airspace
    return f" in {air.elapsed_s / 3600:.1f} h, {air.slots} launches at a time" if air.slots > 1 else ""


def _show_tied(decided: Decision, unit: str, screen: Console) -> None:
    """Name the configurations tied with the best, and why this one was chosen."""
    if not decided.tied:
        return
    others = ", ".join(
        f"trial {s.first.number} {s.first.label} ({figure(s.value)} {unit}, {s.user_tok_s:.1f} per user)"
        for s in decided.tied
    )
    screen.print(f"tied within noise: {others}; the fastest per user was chosen, then the nearest to the defaults")


def _show_gain(winner: Standing, records: Sequence[TrialRecord], unit: str, screen: Console) -> None:
    """Show the winner's gain over SGLang's defaults and over the recipe."""
    for source, words in ((BASELINE, "SGLang's defaults"), (RECIPE, "the recipe, attention DP on all GPUs")):
        other = named(records, source)
        if other is None:
            _show_unlaunched(source, words, records, screen)
            continue
        drift = "" if other.drift is None else f"; its second launch {100 * other.drift:+.1f} %"
        gain = 100 * winner.gain_over(other)
        screen.print(f"{words} ({other.first.label}): {figure(other.value)} {unit}; gain {gain:+.0f} %{drift}")


def _show_unlaunched(source: str, words: str, records: Sequence[TrialRecord], screen: Console) -> None:
    """Say why there is no gain over a configuration that was proposed and never measured."""
    for record in records:
        if record.source == source and record.repeats is None:
            screen.print(f"{words} ({record.label}): not measured, {why(record)}", markup=False)


def figure(value: float) -> str:
    """Return a number with as many digits as a reader compares."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _moved(record: TrialRecord) -> str:
    return f" with {record.unpriced}" if record.unpriced else ""


def show_calibrated(calibrated: dict[str, Any] | None, screen: Console) -> None:
    """Show the profile learned from the run, and how to plan with it."""
    if calibrated is None:
        return
    if calibrated["profile"] is None:
        screen.print(calibrated["refused"], markup=False, soft_wrap=True)
        return
    screen.print(f"calibrated: {calibrated['sentence']}", markup=False, soft_wrap=True)
    screen.print(f"plan again with --profile {calibrated['profile']}", markup=False, soft_wrap=True)


def _show_pareto(records: Sequence[TrialRecord], screen: Console) -> None:
    """Print the front of tok/s per GPU against tok/s per user over everything measured."""
    front = pareto_of(records)
    if len(front) < 2:
        return
    step = -(-len(front) // MOST_ON_FRONT)
    table = Table(title="best trade-offs of all loads measured", title_justify="left")
    for heading in ("trial", "configuration", "load", "tok/s per GPU", "per user", "TTFT ms"):
        table.add_column(heading, justify="left" if heading == "configuration" else "right")
    for point in [*front[:-1:step], front[-1]]:
        load = f"{point['request_rate']:g}/s" if point["request_rate"] else f"{point['concurrency']:,}"
        table.add_row(
            str(point["trial"]), point["label"], load, f"{point['output_tok_s_per_gpu']:,.0f}",
            f"{point['user_tok_s']:.1f}", f"{point['ttft_mean_ms']:,.0f}",
        )  # fmt: skip
    screen.print(table)


def why(record: TrialRecord) -> str:
    """Return the failure in one line; all of the evidence is in the record."""
    lines = record.reason.strip().splitlines() or [""]
    return f"{record.failure or record.outcome}: {lines[0]}"


def _launches(count: int) -> str:
    return "one launch" if count == 1 else f"{count} launches"


def _show_learned(records: Sequence[TrialRecord], screen: Console) -> None:
    """Show the effects of single knobs, and the prediction's errors."""
    for effect in knob_effects(records)[:MOST_SENTENCES]:
        screen.print(f"learned: {effect.sentence}", markup=False)
    for effect_of_node in node_effects(records):
        if effect_of_node.slow:
            screen.print(effect_of_node.sentence, markup=False)
    off = [f"{r.family} {100 * r.mean:+.1f} %" for r in residuals(records)[:MOST_SENTENCES]]
    if off:
        screen.print(f"measured over predicted: {', '.join(off)}", markup=False)


def _show_nearest(records: Sequence[TrialRecord], screen: Console) -> None:
    nearest = nearest_of(records)
    if nearest is None or nearest.target is None:
        screen.print("[bold red]no configuration could be measured[/]")
        return
    screen.print(
        f"[bold red]no configuration meets the limits[/]; nearest: {escape(nearest.label)} with "
        f"{nearest.target.output_tok_s:,.0f} tok/s ({escape('; '.join(nearest.misses))})"
    )


def _ranking(records: Sequence[TrialRecord], manifest: Manifest) -> Table:
    own = {Objective.OUTPUT_TOK_S: (), Objective.TPOT: ()}.get(manifest.objective, (str(manifest.objective),))
    table = Table(title=f"{SIMULATED if manifest.simulated else 'measured'}, best first", title_justify="left")
    for heading in ("trial", "source", "configuration", "mem frac", "chunk", "graph bs", *own, "tok/s", "predicted",
                    "per user", "TPOT ms", "TTFT ms", "note"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("source", "configuration", "note") else "right")
    first = [r for r in records if r.repeats is None]
    again = {r.repeats: r.target.output_tok_s for r in records if r.repeats is not None and r.target}
    measured = sorted((r for r in first if r.target), key=lambda r: (not r.feasible, -r.objective))
    launched = [*measured, *(r for r in first if r.launched and not r.target)]
    for record in launched[:MOST_ROWS]:
        config, target = record.config, record.target
        figures = (
            (f"{target.output_tok_s:,.0f}", f"{record.predicted['output_tok_s']:,.0f}", f"{target.user_tok_s:.1f}",
             f"{target.tpot_ms['mean']:.1f}", f"{target.ttft_ms['mean']:,.0f}")
            if target
            else ("-", f"{record.predicted['output_tok_s']:,.0f}", "-", "-", "-")
        )  # fmt: skip
        value = () if not own else ("-" if record.value is None else figure(record.value),)
        note = "; ".join(filter(None, (record.unpriced, *record.misses))) if target else why(record)
        if record.number in again:
            note = "; ".join(filter(None, (note, f"again: {again[record.number]:,.0f}")))
        note = escape(note)
        table.add_row(
            str(record.number), record.source, record.label, f"{config.mem_fraction_static:.3f}",
            str(config.chunked_prefill_size), str(config.cuda_graph_max_bs_decode), *value, *figures, note,
        )  # fmt: skip
    if len(launched) > MOST_ROWS:
        table.caption = f"the first {MOST_ROWS} of {len(launched):,} launches; result.json holds all"
    return table
