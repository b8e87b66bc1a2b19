"""Figures of runs: pure functions from trials to plotly figures. No Streamlit here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboard.charts.colours import BAD, COLOURS, GOOD, KV_CACHE, NEUTRAL, colour_of, family_of, symbol_of
from dashboard.charts.plan_charts import (
    CLIENTS,
    TOK_S_GPU,
    TOK_S_USER,
    empty,
    owner_colour,
    owners_of,
    shade_limit,
    styled,
)
from models.costs.memory import MemoryLedger
from models.workload import Slo
from planner.plans.frontier import pareto_front
from tuner.evidence.live_state import LiveTrial
from tuner.evidence.load_history import LoadSample
from tuner.evidence.trial import TrialRecord, best_of
from tuner.seam import Measurement


def ladder(current: LiveTrial | None, best: TrialRecord | None, baseline: TrialRecord | None) -> go.Figure:
    """Draw the rate over the clients: the running trial as far as it is measured, the best and the baseline."""
    figure = go.Figure()
    for record, name, dash in ((baseline, "SGLang's defaults", "dot"), (best, "best so far", "dash")):
        if record is not None and record.points:
            stroke = _Stroke(colour=colour_of(record.config), dash=dash, width=1.5)
            _rates(figure, record.points, f"{name}: {record.label}", stroke)
    if current is not None:
        colour = colour_of(current.config)
        points = sorted(current.points, key=lambda point: point.concurrency)
        stroke = _Stroke(colour=colour, width=3.0, size=11)
        _rates(figure, points, f"trial {current.number}: {current.config.label}", stroke)
        low, high = current.band_tok_s
        figure.add_scatter(
            x=[current.asked], y=[current.predicted_tok_s], mode="markers", name="predicted, 90 % band",
            marker={"color": colour, "symbol": "x-thin-open", "size": 12, "line": {"width": 3}},
            error_y={"array": [high - current.predicted_tok_s], "arrayminus": [current.predicted_tok_s - low]},
            hovertemplate="predicted %{y:,.0f} tok/s<extra></extra>",
        )  # fmt: skip
    styled(figure, x=CLIENTS, y="output tok/s")
    _clients_axis(figure)
    return figure


def _clients_axis(figure: go.Figure) -> None:
    """Put a tick at every number of clients that is drawn, on a logarithmic axis."""
    steps = sorted({x for trace in figure.data for x in trace.x or ()})
    figure.update_xaxes(type="log", tickvals=steps, ticktext=[f"{step:,}" for step in steps])
    if steps:
        figure.update_xaxes(range=[math.log10(0.8 * steps[0]), math.log10(1.25 * steps[-1])])
    figure.update_yaxes(rangemode="tozero")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stroke:
    """How a line is drawn."""

    colour: str
    dash: str = "solid"
    width: float = 2.0
    size: int = 8


def _rates(figure: go.Figure, points: Sequence[Measurement], name: str, stroke: _Stroke) -> None:
    points = sorted(points, key=lambda point: point.load)  # the asked load may have been measured first
    figure.add_scatter(
        x=[point.concurrency for point in points], y=[point.output_tok_s for point in points], mode="lines+markers",
        name=name, line={"color": stroke.colour, "dash": stroke.dash, "width": stroke.width},
        marker={"size": stroke.size},
        customdata=[[point.user_tok_s, point.ttft_ms["mean"], str(point.verdict)] for point in points],
        hovertemplate="%{x:,} clients: %{y:,.0f} tok/s<br>%{customdata[0]:.1f} per user, TTFT %{customdata[1]:,.0f} ms"
        "<br>%{customdata[2]}<extra></extra>",
    )  # fmt: skip


def history(records: Sequence[TrialRecord], baseline: TrialRecord | None, ceiling_tok_s: float | None) -> go.Figure:
    """Draw every launch in order, the best so far, the baseline and the predicted ceiling."""
    figure = go.Figure()
    launched = [record for record in records if record.launched]
    best = _best_so_far(launched)
    if best:
        figure.add_scatter(
            x=list(best), y=list(best.values()), mode="lines", name="best so far",
            line={"color": GOOD, "width": 2, "shape": "hv"},
        )  # fmt: skip
    by_family(figure, [(record, record.number, rate_at_target(record)) for record in launched if record.target])
    failed = [record for record in launched if record.target is None]
    if failed:
        figure.add_scatter(
            x=[record.number for record in failed], y=[0.0 for _ in failed], mode="markers", name="no figure",
            marker={"symbol": "x", "color": BAD, "size": 9},
            customdata=[f"{record.label}: {record.failure or record.outcome}" for record in failed],
            hovertemplate="trial %{x}: %{customdata}<extra></extra>",
        )  # fmt: skip
    if baseline is not None and baseline.target is not None:
        _level(figure, baseline.target.output_tok_s, "SGLang's defaults", NEUTRAL, "bottom right")
    if ceiling_tok_s:
        _level(figure, ceiling_tok_s, "predicted ceiling", "#E69F00", "top left")
    styled(figure, x="trial", y="output tok/s at the asked clients")
    figure.update_xaxes(dtick=max(1, len(records) // 8))
    figure.update_yaxes(rangemode="tozero")
    return figure if launched else empty(figure, "no launch has ended yet")


def _best_so_far(launched: Sequence[TrialRecord]) -> dict[int, float]:
    best_by_trial: dict[int, float] = {}
    leader: TrialRecord | None = None
    for record in launched:
        leader = best_of([one for one in (leader, record) if one is not None])
        if leader is not None:
            best_by_trial[record.number] = rate_at_target(leader)
    return best_by_trial


def rate_at_target(record: TrialRecord) -> float:
    """Return a trial's output tok/s at the asked clients, 0 where it was not measured."""
    return record.target.output_tok_s if record.target else 0.0


def _level(figure: go.Figure, height: float, name: str, colour: str, place: str) -> None:
    figure.add_hline(
        y=height, line={"color": colour, "dash": "dot"}, annotation_text=f"{name} {height:,.0f}",
        annotation_position=place, annotation_font={"color": colour},
    )  # fmt: skip


def by_family(figure: go.Figure, points: Sequence[tuple[TrialRecord, float | str, float]], size: int = 10) -> None:
    """Add markers, one trace and legend entry per layout family, in the families' own order."""
    for family, colour in COLOURS.items():
        own = [(record, x, y) for record, x, y in points if family_of(record.config) is family]
        if not own:
            continue
        figure.add_scatter(
            x=[x for _, x, _ in own], y=[y for _, _, y in own], mode="markers", name=family,
            marker={
                "color": colour, "size": size, "line": {"width": 1, "color": colour},
                "symbol": [symbol_of(r.config) + ("" if r.feasible else "-open") for r, _, _ in own],
            },
            customdata=[[r.number, r.label, "; ".join(r.misses) or "within the limits"] for r, _, _ in own],
            hovertemplate="trial %{customdata[0]}: %{customdata[1]}<br>%{y:,.4~g}<br>%{customdata[2]}<extra></extra>",
        )  # fmt: skip


def failures(records: Sequence[TrialRecord]) -> go.Figure:
    """Draw how many launches failed, by class."""
    counts = Counter(
        str(record.failure or record.outcome) for record in records if record.launched and not record.target
    )
    figure = go.Figure()
    names = [name for name, _ in counts.most_common()]
    figure.add_bar(
        y=names, x=[counts[name] for name in names], orientation="h", marker={"color": BAD},
        text=[counts[name] for name in names],
    )  # fmt: skip
    styled(figure, x="launches", y="", height=110 + 34 * len(names), legend=False)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(dtick=max(1, max(counts.values(), default=1) // 4), rangemode="tozero")
    return figure


def pareto(records: Sequence[TrialRecord], slos: Sequence[Slo], trial_numbers: Sequence[int]) -> go.Figure:
    """Draw every measured point: tok/s per GPU against tok/s per user, the front, and the compared trials."""
    figure = go.Figure()
    points = [
        (record, point.user_tok_s, point.output_tok_s / record.config.gpu_count, point)
        for record in records
        for point in record.points
    ]
    if not points:
        return empty(styled(figure, x=TOK_S_USER, y=TOK_S_GPU, legend=False), "nothing measured yet")
    front = sorted(pareto_front([(y, x) for _, x, y, _ in points]), key=lambda index: points[index][1])
    figure.add_scatter(
        x=[points[index][1] for index in front], y=[points[index][2] for index in front], mode="lines",
        line={"color": NEUTRAL, "dash": "dot", "width": 2}, name="Pareto front", hoverinfo="skip",
    )  # fmt: skip
    by_family(figure, [(record, x, y) for record, x, y, _ in points], size=8)
    for number in trial_numbers:
        own = [(x, y) for record, x, y, _ in points if record.number == number]
        if own:
            figure.add_scatter(
                x=[x for x, _ in own], y=[y for _, y in own], mode="lines+markers", name=f"trial {number}",
                line={"color": NEUTRAL, "width": 1}, marker={"symbol": "circle-open", "size": 16}, hoverinfo="skip",
            )  # fmt: skip
    shade_limit(figure, slos)
    styled(figure, x=TOK_S_USER, y=TOK_S_GPU, height=460)
    figure.update_xaxes(range=[0, 1.05 * max(x for _, x, _, _ in points)])
    figure.update_yaxes(rangemode="tozero")
    return figure


def _interval_bars(points: Sequence[Measurement]) -> dict[str, list[float]]:
    """Return the 95 % intervals of the points' rates as plotly's error bars."""
    return {
        "array": [point.output_tok_s_interval[1] - point.output_tok_s for point in points],
        "arrayminus": [point.output_tok_s - point.output_tok_s_interval[0] for point in points],
    }


# What a curve over the clients may show: label, and how it is read from a point.
RATE = "output tok/s"
CURVES: dict[str, Callable[[Measurement], float]] = {
    RATE: lambda point: point.output_tok_s,
    "tok/s per user": lambda point: point.user_tok_s,
    "TPOT mean, ms": lambda point: point.tpot_ms["mean"],
    "TTFT mean, ms": lambda point: point.ttft_ms["mean"],
}


DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def curves(records: Sequence[TrialRecord], quantity: str) -> go.Figure:
    """Draw a quantity of CURVES over the clients, a line style for each trial; rates with their 95 % intervals."""
    figure = go.Figure()
    read = CURVES[quantity]
    for number, record in enumerate(records):
        figure.add_scatter(
            x=[point.concurrency for point in record.points], y=[read(point) for point in record.points],
            mode="lines+markers", name=f"trial {record.number}: {record.label}",
            line={"color": colour_of(record.config), "dash": DASHES[number % len(DASHES)], "width": 2.5},
            error_y=_interval_bars(record.points) if quantity == RATE else None,
            hovertemplate="%{x:,} clients: %{y:,.4~g}<extra></extra>",
        )  # fmt: skip
    styled(figure, x=CLIENTS, y=quantity, height=340)
    _clients_axis(figure)
    return figure


def load_over_time(samples: Sequence[LoadSample]) -> go.Figure:
    """Draw requests that run and wait, and the share of the KV cache in use, over the seconds of a trial."""
    figure = go.Figure()
    seconds = [sample.at_s - samples[0].at_s for sample in samples]
    kv_percent = [None if sample.kv_share is None else 100.0 * sample.kv_share for sample in samples]
    for name, values, colour, axis in (
        ("running", [sample.running for sample in samples], "#0072B2", "y"),
        ("queued", [sample.queued for sample in samples], "#E69F00", "y"),
        ("KV cache in use", kv_percent, KV_CACHE, "y2"),
    ):
        figure.add_scatter(
            x=seconds, y=values, mode="lines", name=name, yaxis=axis,
            line={"color": colour, "width": 2, "dash": "solid" if axis == "y" else "dot"},
            hovertemplate=f"{name} %{{y:,.4~g}}<extra></extra>",
        )  # fmt: skip
    styled(figure, x="seconds since the first point of the trial", y="requests", height=300)
    figure.update_layout(
        yaxis={"rangemode": "tozero"},
        yaxis2={
            "title": "KV cache, %",
            "overlaying": "y",
            "side": "right",
            "range": [0, 105],
            "showgrid": False,
            "tickmode": "array",
            "tickvals": [0, 25, 50, 75, 100],
        },
    )
    return figure


def ledgers(named: Mapping[str, MemoryLedger]) -> go.Figure:
    """Draw the memory of one GPU for several configurations, a stacked bar each."""
    figure = go.Figure()
    names = list(named)[::-1]
    for group in ("weights", "overhead", "KV pool", "free"):
        values = [sum(gib for owner, gib in owners_of(named[name]) if _group(owner) == group) for name in names]
        figure.add_bar(
            y=names, x=values, orientation="h", name=group, marker={"color": owner_colour(group)},
            text=[f"{value:,.1f}" for value in values], textposition="inside", insidetextanchor="middle", textangle=0,
            hovertemplate=f"{group}: %{{x:,.2f}} GiB<extra></extra>",
        )  # fmt: skip
    styled(figure, x="GiB of one GPU", y="", height=150 + 50 * len(names))
    figure.update_layout(
        barmode="stack", bargap=0.35, legend={"traceorder": "normal"}, uniformtext={"minsize": 9, "mode": "hide"}
    )
    return figure


def _group(owner: str) -> str:
    return "weights" if owner.startswith("weights") else owner if owner in ("KV pool", "free") else "overhead"
