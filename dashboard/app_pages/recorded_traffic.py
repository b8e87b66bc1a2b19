"""Traffic: what a trace holds, what a cache of any size hits, and the minutes of servers under it."""

import shlex

import streamlit as st

from dashboard.charts import traffic_charts as charts
from dashboard.readers.traffic_file import ServedPlan, Summary, TrafficView, listed, served_plan, view_of
from dashboard.widgets import BOUND, command, stop, table, tile
from hwprobe.catalogue import hardware_names
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown

LIMITS = ("ttft:p99<2s", "ttft:p99<500ms", "tpot:mean<50ms", "tpot:mean<20ms", "e2e:p95<60s")
NO_MACHINE = "none"


def choose_file() -> str:
    """Let the reader name a file."""
    with st.sidebar:
        name = st.selectbox(
            "Trace, or JSON of sgtune", listed(), index=None, key="traffic", bind=BOUND, accept_new_options=True,
            placeholder="a file below this folder",
            help="A file of requests as sgtune traffic reads it, or what sgtune traffic or plan --traffic printed",
        )  # fmt: skip
    return name or ""


def plan_of(view: TrafficView) -> ServedPlan | None:
    """Return the plan that the file holds, or the one of the machine that is chosen for a trace."""
    if not view.is_trace:
        return view.plan
    with st.sidebar:
        machine = st.selectbox("Plan for", [NO_MACHINE, *hardware_names()], key="hw", bind=BOUND)
        limits = st.multiselect(
            "Limits", LIMITS, key="slo", bind=BOUND, accept_new_options=True, placeholder="ttft:p99<10s"
        )
        scale = st.number_input(
            "Rate scale", 0.01, 1000.0, 1.0, key="scale", bind=BOUND, help="Sessions begin so many times as often"
        )
    if machine in (None, NO_MACHINE):
        return None
    with st.spinner("planning: the trace is replayed on configurations of the search"):
        plan = served_plan(view, str(machine), tuple(limits), float(scale))
    command(plan_command(view, str(machine), limits, float(scale)), "This plan in a terminal")
    return plan


def plan_command(view: TrafficView, machine: str, limits: list[str], scale: float) -> str:
    words = ["sgtune", "plan", "--hardware", machine, "--traffic", str(view.path)]
    words += [word for limit in limits for word in ("--slo", limit)]
    return shlex.join(words if scale == 1.0 else [*words, "--rate-scale", f"{scale:g}"])


def show_summary(shown: Summary, plan: ServedPlan | None) -> None:
    """Show the figures of a trace."""
    with st.grid(5, min_column_width=150):
        tile("Requests", f"{shown.requests:,}", f"{shown.sessions:,} sessions")
        tile("Busiest minute, 1/s", f"{shown.arrivals.busiest_minute_rate:.3g}", f"mean {shown.arrivals.mean_rate:.3g}")
        tile("Prompt mean, tokens", f"{shown.input_tokens.mean:,.0f}", f"p99 {shown.input_tokens.p99:,.0f}")
        tile("Answer mean, tokens", f"{shown.output_tokens.mean:,.0f}", f"p99 {shown.output_tokens.p99:,.0f}")
        tile("Seen before", f"{shown.prefix_hit_rate:.1%}", "of the prompt tokens")
    st.markdown("**Arrivals**")
    st.plotly_chart(charts.arrivals(shown), key="arrivals", alt="Requests per second over the trace's time")
    gaps = shown.arrivals.gap_cv
    st.caption(f"Gaps vary by {gaps:.2f} of their mean; where requests come independently (Poisson) it is 1.")
    st.markdown("**Lengths**")
    st.plotly_chart(charts.lengths(shown), key="lengths", alt="Percentiles of prompts, their shared part, and answers")
    st.markdown("**What a radix cache hits, by its size**")
    holds = plan.answer.kv_tokens if plan and plan.answer else None
    st.plotly_chart(charts.hit_curve(shown, holds), key="hits", alt="Hit rate of a cache by its tokens")
    st.caption(
        "One pass in the order of arrival, least recently used first out; the dotted line is a cache without end. What "
        "running requests hold is room the cache does not have."
        + (" The dashed line: what one planned server holds." if holds else "")
    )


def show_plan(plan: ServedPlan) -> None:
    """Show the minutes of the servers that a plan found."""
    limits, answer = ", ".join(plan.question.slo) or "the limits", plan.answer
    if answer is None:
        st.warning(as_markdown(f"No configuration of {plan.question.hardware} fits this trace."))
        return
    word = "keeps" if plan.meets_target else "does not keep"
    st.markdown(
        as_markdown(
            f"{answer.deployment} on {plan.question.hardware} {word} {limits}; {answer.hit_rate:.0%} of the prompt "
            f"tokens hit; {plan.minutes_over} of {len(plan.traffic.minutes)} minutes have requests over a limit."
        )
    )
    st.plotly_chart(
        charts.minutes(plan.traffic.minutes), key="minutes", alt="Requests of each minute, and over a limit"
    )
    table(charts.minutes_table(plan), "minutes table")


name = choose_file()
if not name:
    st.subheader("Name a file of requests.")
    st.write("A trace below this folder or the folder of runs, or what sgtune printed of one:")
    command("sgtune traffic requests.jsonl --json > traffic.json", "A summary")
    st.stop()
try:
    view = view_of(name)
    if view.summary is not None:
        seconds = view.summary.duration_s
        span = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
        st.subheader(as_markdown(f"{view.name}: {view.summary.requests:,} requests in {span}"))
    elif view.plan is not None:
        st.subheader(as_markdown(f"{view.plan.question.traffic} on {view.plan.question.hardware}, as planned"))
    plan = plan_of(view)
except InputError as error:
    stop(f"{error}")
if plan is not None:
    st.markdown("**Minutes**")
    show_plan(plan)
if view.summary is not None:
    show_summary(view.summary, plan)
    for note in view.summary.notes:
        st.caption(f":material/info: {as_markdown(note)}")
if view.is_trace:
    command(shlex.join(["sgtune", "traffic", str(view.path)]))
else:
    command("sgtune traffic FILE --json; sgtune plan --hardware h200x8 --traffic FILE --json", "Such files are made by")
