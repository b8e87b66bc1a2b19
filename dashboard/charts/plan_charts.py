"""Figures of plans and machines: pure functions from values to plotly figures. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dashboard.charts.colours import (
    BAD,
    FREE,
    GOOD,
    KV_CACHE,
    NEUTRAL,
    OVERHEAD,
    WEIGHTS,
    colour_of,
    family_of,
    symbol_of,
)
from dashboard.readers.plan_inputs import Curve
from hwprobe.expected import EXPECTED
from hwprobe.findings import Change, ProbeFinding
from hwprobe.profile import Matrix
from models.costs.memory import MemoryLedger
from models.serving.estimate import LIMIT_NAMES
from models.workload import Metric, Slo
from planner.plans.candidates import Candidate
from planner.plans.document import latency_words
from planner.plans.make import Plan

# Weights below this many GiB are drawn together.
SMALL_GIB = 0.3
# A cost of a step below this many ms has no bar.
SMALL_MS = 0.05
TOK_S_GPU, TOK_S_USER = "output tok/s per GPU", "tok/s per user (interactivity)"
CLIENTS = "clients"


def styled(figure: go.Figure, *, x: str, y: str, height: int = 400, legend: bool = True) -> go.Figure:
    """Give a figure axis titles with units, room to breathe, and a zoom that survives a refresh."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 8},
        uirevision="kept",
        hovermode="closest",
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0.0, "title": None},
    )
    figure.update_xaxes(title=x, automargin=True, title_standoff=8)
    figure.update_yaxes(title=y, automargin=True, title_standoff=8)
    return figure


def empty(figure: go.Figure, text: str) -> go.Figure:
    """Say in the middle of a figure why it shows nothing."""
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def owners_of(ledger: MemoryLedger) -> list[tuple[str, float]]:
    """Return (owner, GiB) of one GPU in the order they are taken, small weights together; they sum to the card."""
    large: list[tuple[str, float]] = []
    small = 0.0
    for owner, gib in ledger.per_gpu_gib.items():
        if owner.startswith("weights") and gib < SMALL_GIB:
            small += gib
        else:
            large.append((owner.replace("_", " "), gib))
    place = next((i for i, (owner, _) in enumerate(large) if owner == "KV pool"), len(large))
    return [*large[:place], *([("weights: others", small)] if small else []), *large[place:]]


def owner_colour(owner: str) -> str:
    """Return the colour of a kind of memory."""
    if owner.startswith("weights"):
        return WEIGHTS
    return {"KV pool": KV_CACHE, "free": FREE}.get(owner, OVERHEAD)


def memory_waterfall(ledger: MemoryLedger) -> go.Figure:
    """Draw where one GPU's memory goes, owner after owner up to the card."""
    owners = owners_of(ledger)
    figure = go.Figure()
    filled_gib = furthest = 0.0
    for owner, gib in owners:
        figure.add_bar(
            x=[gib], y=[owner], base=[filled_gib], orientation="h", marker={"color": owner_colour(owner)},
            text=[f"{gib:,.1f}"], textposition="outside" if gib < 0.07 * ledger.card_gib else "inside",
            insidetextfont={"color": "white"}, cliponaxis=False, name=owner,
            hovertemplate=f"{owner}: {gib:,.2f} GiB<extra></extra>",
        )  # fmt: skip
        filled_gib += gib
        furthest = max(furthest, filled_gib)
    figure.add_vline(x=ledger.card_gib, line={"color": NEUTRAL, "dash": "dot"}, layer="below")
    styled(figure, x="GiB of one GPU", y="", legend=False)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=[owner for owner, _ in owners])
    figure.update_xaxes(range=[0, 1.08 * max(ledger.card_gib, furthest)])
    figure.update_layout(bargap=0.25, barmode="overlay")
    return figure


def speed_limit(slos: Sequence[Slo]) -> float | None:
    """Return the least tok/s per user that the TPOT limits allow, None where there is no such limit."""
    limits = [slo.limit_ms for slo in slos if slo.metric is Metric.TPOT]
    return 1e3 / min(limits) if limits else None


def shade_limit(figure: go.Figure, slos: Sequence[Slo]) -> None:
    """Shade the speeds per user at which the TPOT limits are kept."""
    least = speed_limit(slos)
    if least is not None:
        figure.add_vline(x=least, line={"color": GOOD, "width": 1})
        figure.add_vrect(
            x0=least, x1=1e4, fillcolor=GOOD, opacity=0.10, line_width=0, layer="below",
            annotation_text="within " + " and ".join(str(slo) for slo in slos if slo.metric is Metric.TPOT),
            annotation_position="top left", annotation_font={"color": GOOD},
        )  # fmt: skip


def hover(candidate: Candidate) -> str:
    """Return the text of a candidate under the pointer."""
    prediction = candidate.prediction
    return (
        f"<b>{candidate.config.label}</b><br>{prediction.output_tok_s:,.0f} tok/s in total<br>"
        f"{prediction.user_tok_s:.1f} tok/s per user, TTFT {latency_words(prediction.ttft_ms['mean'])}<br>"
        f"{'; '.join(candidate.misses) or 'within the limits'}"
    )


def interactivity(plan: Plan, drawn: Sequence[Curve], row: int) -> go.Figure:
    """Draw throughput against interactivity: candidates at the asked clients, their curves, the Pareto front."""
    figure = go.Figure()
    candidates = plan.found.candidates
    shown: set[str] = set()
    for index, (curve, candidate) in enumerate(zip(drawn, candidates, strict=True)):
        family = family_of(candidate.config)
        group = {"legendgroup": family, "showlegend": False}
        figure.add_scatter(
            x=curve.user_tok_s, y=curve.tok_s_per_gpu, mode="lines",
            line={"color": colour_of(candidate.config), "width": 3 if index == row else 1},
            opacity=1.0 if index == row else 0.45, customdata=curve.clients, **group,
            hovertemplate=candidate.config.label + ", %{customdata:,} clients<br>%{x:.1f} tok/s per user"
            "<br>%{y:,.0f} tok/s per GPU<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[candidate.prediction.user_tok_s], y=[_per_gpu(candidate)], mode="markers",
            marker={
                "color": colour_of(candidate.config), "size": 14 if index == row else 10,
                "symbol": symbol_of(candidate.config) + ("-open" if candidate.misses else ""),
                "line": {"width": 2 if candidate.misses else 1, "color": None if candidate.misses else "white"},
            },
            name=family, legendgroup=family, showlegend=family not in shown,
            hovertemplate=hover(candidate) + "<extra></extra>",
        )  # fmt: skip
        shown.add(family)
    front = sorted((candidates[index] for index in plan.pareto()), key=lambda c: c.prediction.user_tok_s)
    if len(front) > 1:
        figure.add_scatter(
            x=[c.prediction.user_tok_s for c in front], y=[_per_gpu(c) for c in front], mode="lines",
            line={"color": NEUTRAL, "dash": "dot", "width": 2}, name="Pareto front", hoverinfo="skip",
        )  # fmt: skip
    shade_limit(figure, plan.question.all_slos)
    styled(figure, x=TOK_S_USER, y=TOK_S_GPU)
    fastest = max((max(curve.user_tok_s) for curve in drawn), default=100.0)
    figure.update_xaxes(range=[0, 1.05 * max(fastest, speed_limit(plan.question.all_slos) or 0.0)])
    figure.update_yaxes(rangemode="tozero")
    return figure


def _per_gpu(candidate: Candidate) -> float:
    return candidate.output_tok_s / candidate.gpus


def step_costs(steps: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw what decode steps spend their milliseconds on: one row a step, `steps` by name; small costs together."""
    figure = go.Figure()
    names = list(steps)[::-1]
    palette = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A50F")
    by_size = sorted(LIMIT_NAMES, key=lambda cost: -max(parts.get(cost, 0.0) for parts in steps.values()))
    shown = by_size[: len(palette)]
    rows = [(LIMIT_NAMES[cost], colour, [cost]) for cost, colour in zip(shown, palette, strict=True)]
    for label, colour, costs in [*rows, ("other", NEUTRAL, by_size[len(palette) :])]:
        values = [sum(steps[name].get(cost, 0.0) for cost in costs) for name in names]
        if max(values) >= SMALL_MS:
            figure.add_bar(
                y=names, x=values, orientation="h", name=label, marker={"color": colour},
                hovertemplate=f"{label}: %{{x:.2f}} ms<extra>%{{y}}</extra>",
            )  # fmt: skip
    styled(figure, x="ms of one decode step", y="", height=190 + 46 * len(names))
    figure.update_layout(barmode="stack", bargap=0.3, legend={"traceorder": "normal"})
    return figure


def against_sheet(measured: Sequence[ProbeFinding]) -> go.Figure:
    """Draw measured over data sheet per quantity, the slowest GPU beside the median, and what is healthy."""
    shown = [one for one in measured if one.fraction is not None and one.sheet]
    figure = go.Figure()
    if not shown:
        return empty(styled(figure, x="% of the data sheet", y="", height=160), "nothing measured has a data sheet")
    labels = [one.label for one in shown]
    for name, colour, healthy in (("measured (median GPU)", GOOD, True), ("to look at", BAD, False)):
        group = [one for one in shown if (one.verdict in ("", "normal")) is healthy]
        figure.add_bar(
            y=[one.label for one in group], x=[100 * (one.fraction or 0.0) for one in group], orientation="h",
            name=name, marker={"color": colour}, textposition="inside", insidetextanchor="start",
            text=[f"{one.value:,.4g} of {one.sheet:,.4g} {one.unit}" for one in group],
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        y=labels, x=[100 * one.worst / (one.sheet or one.worst) for one in shown], mode="markers", name="slowest GPU",
        marker={"symbol": "line-ns-open", "size": 16, "color": NEUTRAL, "line": {"width": 3}},
    )  # fmt: skip
    listed = [one for one in shown if one.quantity in EXPECTED]
    figure.add_scatter(
        y=[one.label for one in listed], x=[100 * EXPECTED[one.quantity].fraction for one in listed], mode="markers",
        error_x={"array": [100 * EXPECTED[one.quantity].error for one in listed], "thickness": 2},
        marker={"symbol": "diamond-open", "size": 10, "color": "#E69F00"}, name="a healthy card",
    )  # fmt: skip
    styled(figure, x="% of the data sheet", y="", height=140 + 44 * len(shown))
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=labels)
    figure.update_xaxes(range=[0, 112])
    figure.add_vline(x=100, line={"color": NEUTRAL, "dash": "dot"})
    return figure


def heat_map(matrix: Matrix, unit: str) -> go.Figure:
    """Draw a matrix over GPUs, row to column; blank where there is no direct access."""
    names = [str(index) for index in range(len(matrix))]
    text = [["" if value is None else f"{value:,.0f}" for value in row] for row in matrix]
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in matrix], x=names, y=names, text=text, texttemplate="%{text}", xgap=2, ygap=2,
            colorscale="Cividis", colorbar={"title": unit, "thickness": 12},
            hovertemplate=f"GPU %{{y}} to GPU %{{x}}: %{{z:,.1f}} {unit}<extra></extra>",
        )
    )  # fmt: skip
    styled(figure, x="receiving GPU", y="sending GPU", height=440, legend=False)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return figure


def changes_between(changes: Sequence[Change]) -> go.Figure:
    """Draw by how much each measured quantity of the second machine differs from the first's."""
    shown = [change for change in changes if change.change is not None]
    figure = go.Figure()
    if not shown:
        return empty(styled(figure, x="% change", y="", height=160), "the two machines share no measurement")
    colours = {"better": GOOD, "worse": BAD}
    figure.add_bar(
        y=[change.label for change in shown], x=[100 * (change.change or 0.0) for change in shown], orientation="h",
        marker={"color": [colours.get(change.verdict, NEUTRAL) for change in shown]},
        text=[change.verdict for change in shown], textposition="outside", cliponaxis=False,
        customdata=[[change.a, change.b, change.unit] for change in shown],
        hovertemplate="%{y}: %{customdata[0]:,.4g} to %{customdata[1]:,.4g} %{customdata[2]}<extra></extra>",
    )  # fmt: skip
    styled(figure, x="second against first, %", y="", height=140 + 34 * len(shown), legend=False)
    figure.update_yaxes(autorange="reversed")
    return figure
