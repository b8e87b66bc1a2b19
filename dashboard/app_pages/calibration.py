"""Calibration: predicted against measured, where the model is off, and what measurements teach it."""

import shlex

import streamlit as st

from dashboard.charts import learning_charts
from dashboard.readers.commands import off_by, percent
from dashboard.readers.learning import MOST_POINTS, calibrated, parameter_table
from dashboard.readers.runs import RunView
from dashboard.widgets import BOUND, choose_run, command, table
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown
from tuner.evidence.knob_effects import residuals

MOST_SENTENCES = 8

run = choose_run()


def answer(view: RunView) -> str:
    """Return how far predictions were off in one sentence."""
    offs = [off for record in view.measured if (off := off_by(record)) is not None]
    if not offs:
        return "Nothing has been measured yet that could be held against a prediction."
    mean = sum(offs) / len(offs)
    largest = max(offs, key=abs)
    inside = sum(_in_band(record.predicted, record.target.output_tok_s) for record in view.measured if record.target)
    return (
        f"Measured rates are {percent(mean, 1)} from predicted on average over {len(offs)} launches, "
        f"{percent(largest, 1)} at most; {inside} of {len(offs)} lie within the 90 % band."
    )


def _in_band(predicted: dict[str, float], rate: float) -> bool:
    return predicted.get("output_tok_s_low", 0.0) <= rate <= predicted.get("output_tok_s_high", float("inf"))


def show_calibration(view: RunView) -> None:
    """Fit the engine profile to the run's points when asked to, and show what moved."""
    st.markdown("**Engine parameters, before and after calibration with this run's points**")
    calibrate_now = st.toggle(
        "Calibrate now (seconds)", key="calibrate", bind=BOUND,
        help=f"Fits the engine profile to at most {MOST_POINTS} of the measured points, in this page; no file changes",
    )  # fmt: skip
    if not calibrate_now:
        st.caption("What sgtune calibrate makes of this run: each fitted parameter with its spread, before and after.")
        return
    try:
        with st.spinner("fitting"):
            learned = calibrated(view)
    except InputError as error:
        st.error(as_markdown(str(error)))
        return
    fitted = learned.calibration
    left_column, right_column = st.columns(2)
    left_column.plotly_chart(
        learning_charts.parameters(fitted), key="parameters", alt="Engine parameters before and after"
    )
    right_column.plotly_chart(
        learning_charts.before_and_after(learned), key="learned", alt="Measured over predicted rate before and after"
    )
    table(parameter_table(fitted), "moved")
    st.caption(
        f"{len(learned.names)} points; residual of decode times and rates {100 * fitted.rms_decode:.1f} % rms after. "
        + (as_markdown(f"Down-weighted as outliers: {', '.join(fitted.outliers)}.") if fitted.outliers else "")
    )


st.subheader(as_markdown(answer(run)))
if run.measured:
    knobs = list(dict.fromkeys(name for record in run.measured for name in record.params))
    left_column, right_column = st.columns(2)
    with left_column:
        st.markdown("**Predicted against measured**, at the asked clients")
        st.plotly_chart(
            learning_charts.identity(run.records),
            key="identity",
            alt="Measured against predicted output tokens per second",
        )
    if knobs:  # whole deployments have none
        with right_column:
            st.markdown("**Residual by knob**")
            knob = st.selectbox("Knob", knobs, key="knob", bind=BOUND, label_visibility="collapsed")
            st.plotly_chart(
                learning_charts.residuals(run.records, knob or knobs[0]),
                key="residuals",
                alt="Residual by value of a knob",
            )
    first, second = st.columns(2)
    with first:
        st.markdown("**What single knobs did** (pairs of trials that differ in nothing else)")
        sentences = [as_markdown(effect.sentence) for effect in run.effects[:MOST_SENTENCES]]
        st.markdown("\n".join(f"- {sentence}" for sentence in sentences) or "No two trials differ in one knob only.")
    with second:
        st.markdown("**Measured over predicted by family**")
        st.dataframe(
            [
                {"family": one.family, "off %": round(100 * one.mean, 1), "trials": one.trials}
                for one in residuals(run.records)
            ],
            hide_index=True, key="families",
        )  # fmt: skip
    show_calibration(run)
command(
    shlex.join(["sgtune", "calibrate", "--points", str(run.path), "--out", "engine-here.json"]),
    "A profile for --profile, from all points of this run",
)
