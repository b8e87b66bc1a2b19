"""Figures of traffic: arrivals, lengths, what a cache hits, and the minutes of a plan. No Streamlit here."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.colours import BAD, GOOD, KV_CACHE, NEUTRAL, WEIGHTS
from dashboard.charts.plan_charts import empty, styled
from dashboard.readers.traffic_file import ServedMinute, ServedPlan, Summary

PERCENTILES = ("mean", "p50", "p90", "p99", "max")


def arrivals(shown: Summary) -> go.Figure:
    """Draw requests over the trace's time, and their mean."""
    bins, bin_s = shown.arrivals.bins, shown.arrivals.bin_s
    figure = go.Figure()
    figure.add_bar(
        x=[number * bin_s / 60.0 for number in range(len(bins))], y=[count / bin_s for count in bins], offset=0,
        width=bin_s / 60.0, marker={"color": WEIGHTS, "line": {"width": 0}}, name="requests/s",
        hovertemplate="minute %{x:.1f}: %{y:.2f} requests/s<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=shown.arrivals.mean_rate, line={"color": NEUTRAL, "dash": "dot"}, annotation_text="mean")
    styled(figure, x="minutes since the first request", y="requests per second", height=260, legend=False)
    figure.update_layout(bargap=0.0)
    figure.update_yaxes(rangemode="tozero")
    return figure


def lengths(shown: Summary) -> go.Figure:
    """Draw the percentiles of prompts, of what in them came earlier, and of answers."""
    figure = go.Figure()
    rows = (("prompt", shown.input_tokens, WEIGHTS), ("of it seen before", shown.shared_tokens, KV_CACHE),
            ("answer", shown.output_tokens, GOOD))  # fmt: skip
    for name, spread, colour in rows:
        values = [getattr(spread, percentile) for percentile in PERCENTILES]
        figure.add_bar(
            x=list(PERCENTILES), y=values, name=name, marker={"color": colour}, textposition="outside",
            text=[f"{value:,.0f}" for value in values], cliponaxis=False,
            hovertemplate=f"{name}, %{{x}}: %{{y:,.0f}} tokens<extra></extra>",
        )  # fmt: skip
    styled(figure, x="", y="tokens", height=320)
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(rangemode="tozero")
    return figure


def hit_curve(shown: Summary, holds: float | None = None) -> go.Figure:
    """Draw the hits of an LRU cache by its size; `holds` are the KV tokens of a planned server."""
    figure = go.Figure()
    if not shown.prefix_hit_rate:
        return empty(
            styled(figure, x="tokens of the cache", y="", height=200), "no prompt begins as an earlier one does"
        )
    figure.add_scatter(
        x=[point.cache_tokens for point in shown.hit_curve], y=[100 * point.hit_rate for point in shown.hit_curve],
        mode="lines+markers", line={"color": KV_CACHE, "width": 3}, name="hits",
        hovertemplate="%{x:,} tokens: %{y:.1f} %<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=100 * shown.prefix_hit_rate, line={"color": NEUTRAL, "dash": "dot"})
    if holds:
        figure.add_vline(x=holds, line={"color": WEIGHTS, "dash": "dash"})
    styled(figure, x="tokens that the cache holds", y="% of the prompt tokens", height=320, legend=False)
    figure.update_xaxes(type="log")
    figure.update_yaxes(range=[0, 105])
    return figure


def minutes(served: Sequence[ServedMinute]) -> go.Figure:
    """Draw each minute's requests, those above a limit apart, and the requests that wait for a first token."""
    figure = go.Figure()
    if not served:
        return empty(styled(figure, x="minute", y="", height=200), "no configuration fits: nothing was replayed")
    at = [minute.minute for minute in served]
    over = [minute.requests * minute.missed_share for minute in served]
    within = [minute.requests - missed for minute, missed in zip(served, over, strict=True)]
    for name, values, colour in (("within the limits", within, GOOD), ("over a limit", over, BAD)):
        figure.add_bar(
            x=at, y=values, name=name, marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"minute %{{x}}: %{{y:,.0f}} {name}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=at, y=[minute.waiting for minute in served], mode="lines", name="waiting", yaxis="y2",
        line={"color": NEUTRAL, "width": 2}, hovertemplate="minute %{x}: %{y:.1f} waiting<extra></extra>",
    )  # fmt: skip
    styled(figure, x="minute", y="requests sent", height=340)
    figure.update_layout(
        barmode="stack", bargap=0.1,
        yaxis2={"title": "waiting for a first token", "overlaying": "y", "side": "right", "rangemode": "tozero",
                "showgrid": False},
    )  # fmt: skip
    return figure


def minutes_table(plan: ServedPlan) -> pd.DataFrame:
    """Return the minutes of a plan as a table."""
    return pd.DataFrame([
        {
            "minute": minute.minute,
            "requests": minute.requests,
            "over %": round(100 * minute.missed_share),
            "waiting": round(minute.waiting, 1),
            "TTFT p50": round(minute.ttft_p50_ms),
            "p99 ms": round(minute.ttft_p99_ms),
            "TPOT ms": round(minute.tpot_mean_ms, 1),
            "hits %": round(100 * minute.hit_rate),
        }
        for minute in plan.traffic.minutes
    ])  # fmt: skip
