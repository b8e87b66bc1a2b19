"""Figures of predicted against measured: pure functions from trials to plotly figures. No Streamlit here."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.charts.colours import COLOURS, NEUTRAL, Family
from dashboard.charts.plan_charts import empty, styled
from dashboard.charts.run_charts import by_family, rate_at_target
from dashboard.readers.commands import off_by
from dashboard.readers.learning import LearnedProfile
from models.records.calibration import Calibration
from tuner.evidence.trial import TrialRecord

AFTER = COLOURS[Family.TP]


def identity(records: Sequence[TrialRecord]) -> go.Figure:
    """Draw measured against predicted output rate per trial, with the line on which they agree."""
    shown = [record for record in records if off_by(record) is not None]
    figure = go.Figure()
    styled(figure, x="predicted output tok/s", y="measured output tok/s", height=440)
    if not shown:
        return empty(figure, "nothing measured yet")
    values = [value for record in shown for value in (record.predicted["output_tok_s"], rate_at_target(record))]
    low, high = 0.9 * min(values), 1.1 * max(values)
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="measured = predicted",
        line={"color": NEUTRAL, "dash": "dot"}, hoverinfo="skip",
    )  # fmt: skip
    banded = [r for r in shown if {"output_tok_s_low", "output_tok_s_high"} <= r.predicted.keys()]
    figure.add_scatter(
        x=[r.predicted["output_tok_s"] for r in banded], y=[rate_at_target(r) for r in banded], mode="markers",
        marker={"size": 1, "color": NEUTRAL}, opacity=0.5, name="90 % band of the prediction", hoverinfo="skip",
        error_x={
            "array": [r.predicted["output_tok_s_high"] - r.predicted["output_tok_s"] for r in banded],
            "arrayminus": [r.predicted["output_tok_s"] - r.predicted["output_tok_s_low"] for r in banded],
            "thickness": 1, "width": 0,
        },
    )  # fmt: skip
    by_family(figure, [(record, record.predicted["output_tok_s"], rate_at_target(record)) for record in shown])
    figure.update_xaxes(range=[low, high])
    figure.update_yaxes(range=[low, high])
    return figure


def residuals(records: Sequence[TrialRecord], knob: str) -> go.Figure:
    """Draw measured over predicted, less one, of each trial by the value of a knob."""
    shown = [(record, off) for record in records if (off := off_by(record)) is not None]
    figure = go.Figure()
    styled(figure, x=knob, y="measured over predicted, %", height=440)
    if not shown:
        return empty(figure, "nothing measured yet")
    figure.add_hline(y=0.0, line={"color": NEUTRAL, "dash": "dot"})
    by_family(figure, [(record, knob_value(record, knob), 100 * off) for record, off in shown])
    figure.update_xaxes(type="category", categoryorder="category ascending")
    return figure


def knob_value(record: TrialRecord, knob: str) -> str:
    """Return a trial's value of a knob as text; knobs the trial does not have are '-'."""
    return str(record.params.get(knob, "-"))


def before_and_after(learned: LearnedProfile) -> go.Figure:
    """Draw measured against predicted rate of the points learned from, before and after calibration."""
    figure = go.Figure()
    low, high = (pick((*learned.measured, *learned.before, *learned.after)) for pick in (min, max))
    figure.add_scatter(
        x=[0.9 * low, 1.1 * high], y=[0.9 * low, 1.1 * high], mode="lines", name="measured = predicted",
        line={"color": NEUTRAL, "dash": "dot"}, hoverinfo="skip",
    )  # fmt: skip
    for name, colour, values in (("before", NEUTRAL, learned.before), ("after", AFTER, learned.after)):
        figure.add_scatter(
            x=values, y=learned.measured, mode="markers", name=name, marker={"color": colour, "size": 10},
            customdata=learned.names,
            hovertemplate="%{customdata}: predicted %{x:,.0f}, measured %{y:,.0f} tok/s<extra></extra>",
        )  # fmt: skip
    styled(figure, x="predicted output tok/s", y="measured output tok/s")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def parameters(calibration: Calibration) -> go.Figure:
    """Draw each engine parameter over its value before calibration, with its spread before and after."""
    figure = go.Figure()
    names = [item.name for item in calibration.parameters]
    sides: tuple[tuple[str, str, list[float], list[float]], ...] = (
        ("before", NEUTRAL, [1.0 for _ in names], [item.before for item in calibration.parameters]),
        (
            "after", AFTER, [i.value_after / i.value_before for i in calibration.parameters],
            [i.after * i.value_after / i.value_before for i in calibration.parameters],
        ),
    )  # fmt: skip
    for shift, (name, colour, values, spreads) in zip((-0.12, 0.12), sides, strict=True):
        figure.add_scatter(
            y=[place + shift for place in range(len(names))], x=values, mode="markers", name=name,
            marker={"color": colour, "size": 10}, error_x={"array": spreads, "thickness": 2},
            hovertemplate="%{x:.3f} of the value before<extra></extra>",
        )  # fmt: skip
    styled(figure, x="value over the value before, with one standard deviation", y="", height=110 + 60 * len(names))
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    return figure
