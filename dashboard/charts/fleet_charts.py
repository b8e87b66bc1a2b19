"""Figures of fleets: copies, large servers and prefill/decode against each other, their pools, where requests wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dashboard.charts.colours import BAD, GOOD, KV_CACHE, NEUTRAL, OVERHEAD, WEIGHTS
from dashboard.charts.plan_charts import TOK_S_GPU, TOK_S_USER, shade_limit, styled
from dashboard.readers.fleets import DeploymentKind, FleetCurve, frontier
from models.workload import Slo
from planner.fleets.deployment import Deployment, Pool, Role

KIND_COLOURS = {DeploymentKind.COPIES: "#0072B2", DeploymentKind.ONE: "#E69F00", DeploymentKind.APART: "#009E73"}
KIND_SYMBOLS = {DeploymentKind.COPIES: "circle", DeploymentKind.ONE: "square", DeploymentKind.APART: "diamond"}
ROLE_COLOURS = {Role.MIXED: WEIGHTS, Role.PREFILL: BAD, Role.DECODE: KV_CACHE}
STAGE_COLOURS = (BAD, OVERHEAD, NEUTRAL, KV_CACHE)
# Servers of a pool that are drawn, and a server's height and width in the picture.
MOST_DRAWN = 8
WIDE, HIGH = 1.0, 0.8


def deployments(drawn: Sequence[FleetCurve], row: int, slos: Sequence[Slo] = ()) -> go.Figure:
    """Draw throughput per GPU against speed per user by kind of deployment, and the frontier of all of them."""
    figure = go.Figure()
    shown: set[DeploymentKind] = set()
    for index, curve in enumerate(drawn):
        chosen = index == row
        sizes = [*[6] * (len(curve.clients) - 1), 14 if chosen else 10]
        figure.add_scatter(
            x=curve.user_tok_s, y=curve.tok_s_per_gpu, mode="lines+markers", name=str(curve.kind),
            legendgroup=str(curve.kind), showlegend=curve.kind not in shown, customdata=curve.clients,
            opacity=1.0 if chosen else 0.55,
            line={"color": KIND_COLOURS[curve.kind], "width": 3 if chosen else 1},
            marker={"symbol": KIND_SYMBOLS[curve.kind], "size": sizes},
            hovertemplate=curve.name + ", %{customdata:,} clients<br>%{x:.1f} tok/s per user"
            "<br>%{y:,.0f} tok/s per GPU<extra></extra>",
        )  # fmt: skip
        shown.add(curve.kind)
    best = frontier(list(drawn))
    figure.add_scatter(
        x=[x for x, _ in best], y=[y for _, y in best], mode="lines", name="frontier",
        line={"color": NEUTRAL, "dash": "dot", "width": 2}, hoverinfo="skip",
    )  # fmt: skip
    shade_limit(figure, slos)
    styled(figure, x=TOK_S_USER, y=TOK_S_GPU)
    figure.update_xaxes(range=[0, 1.05 * max(max(curve.user_tok_s) for curve in drawn)])
    figure.update_yaxes(rangemode="tozero")
    return figure


def waits(stages: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw the mean life of a request, stage by stage: one row for each deployment of `stages`, in seconds."""
    figure = go.Figure()
    names = list(stages)[::-1]
    listed = list(dict.fromkeys(stage for parts in stages.values() for stage in parts))
    decode = [stage for stage in listed if stage == "decode"]
    before = [stage for stage in listed if stage != "decode"]
    colours = [*STAGE_COLOURS[: len(before)], *([GOOD] if decode else [])]
    for stage, colour in zip([*before, *decode], colours, strict=False):
        figure.add_bar(
            y=names, x=[stages[name].get(stage, 0.0) for name in names], orientation="h", name=stage,
            marker={"color": colour}, hovertemplate=f"{stage}: %{{x:.2f}} s<extra>%{{y}}</extra>",
        )  # fmt: skip
    styled(figure, x="mean seconds of a request's life", y="", height=150 + 44 * len(names))
    figure.update_layout(barmode="stack", bargap=0.3, legend={"traceorder": "normal"})
    return figure


def pools(deployment: Deployment, stages: Mapping[str, float]) -> go.Figure:
    """Draw the router, the servers of each pool, and between them what a request waits for."""
    figure = go.Figure()
    rows = max(min(pool.servers, MOST_DRAWN) for pool in deployment.pools)
    middle = rows / 2.0
    places = [2.0 + 2.6 * number for number in range(len(deployment.pools))]
    _box(figure, 0.0, middle - HIGH / 2.0, "router" if deployment.servers > 1 else "clients", NEUTRAL)
    for place, pool in zip(places, deployment.pools, strict=True):
        _pool(figure, place, pool, middle)
    before = WIDE
    arrows = [*places]
    words = _words(deployment, stages)
    for place, text in zip(arrows, words, strict=True):
        _arrow(figure, before, place - 0.1, middle, text)
        before = place + WIDE + 0.1
    figure.add_annotation(
        x=before + 0.1, y=middle, text=f"decode {stages['decode']:.1f} s", showarrow=False, xanchor="left",
    )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.2, before + 1.4])
    figure.update_yaxes(visible=False, range=[-0.9, rows + 0.3])
    figure.update_layout(
        height=90 + 46 * rows, margin={"l": 8, "r": 8, "t": 8, "b": 8}, uirevision="kept", showlegend=False,
        plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    return figure


def _words(deployment: Deployment, stages: Mapping[str, float]) -> list[str]:
    """Return what stands on the arrow to each pool: what requests wait for before it."""
    before = [(stage.replace(", ", ",<br>"), seconds) for stage, seconds in stages.items() if stage != "decode"]
    if not before:
        return ["a queue<br>without end", *[""] * (len(deployment.pools) - 1)]
    if len(deployment.pools) == 1:
        return ["<br>".join(f"{stage}<br>{seconds:.1f} s" for stage, seconds in before)]
    (first, first_s), *rest = before
    return [f"{first}<br>{first_s:.1f} s", "<br>".join(f"{stage} {seconds:.2f} s" for stage, seconds in rest)]


def _pool(figure: go.Figure, place: float, pool: Pool, middle: float) -> None:
    """Draw the servers of a pool, of many the first, one above the other."""
    drawn = min(pool.servers, MOST_DRAWN)
    base = middle - drawn / 2.0
    for number in range(drawn):
        _box(
            figure, place, base + number + (1.0 - HIGH) / 2.0, f"{pool.config.gpu_count} GPUs", ROLE_COLOURS[pool.role]
        )
    more = f", {drawn} drawn" if drawn < pool.servers else ""
    figure.add_annotation(
        x=place + WIDE / 2.0, y=base - 0.35, showarrow=False,
        text=f"{pool.servers} {pool.role}: {pool.config.label}{more}",
    )  # fmt: skip


def _box(figure: go.Figure, x: float, y: float, text: str, colour: str) -> None:
    figure.add_shape(
        type="rect", x0=x, x1=x + WIDE, y0=y, y1=y + HIGH, line={"width": 0}, fillcolor=colour, opacity=0.85
    )
    figure.add_annotation(x=x + WIDE / 2.0, y=y + HIGH / 2.0, text=text, showarrow=False, font={"color": "white"})


def _arrow(figure: go.Figure, start: float, end: float, y: float, text: str) -> None:
    figure.add_annotation(
        x=end, y=y, ax=start + 0.1, ay=y, xref="x", yref="y", axref="x", ayref="y", showarrow=True, arrowhead=2,
        arrowcolor=NEUTRAL, text="",
    )  # fmt: skip
    figure.add_annotation(x=(start + end) / 2.0, y=y, text=text, showarrow=False, yanchor="bottom", font={"size": 11})
