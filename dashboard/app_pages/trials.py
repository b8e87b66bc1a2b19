"""Trials: every measured point, the table behind it, and two configurations side by side."""

import shlex

import streamlit as st

from dashboard.charts import run_charts, tables
from dashboard.readers.runs import RunView
from dashboard.widgets import BOUND, choose_run, command, table
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown
from planner.launch_files.parameters import Parameters
from tuner.evidence.trial import TrialRecord
from tuner.launch_files.trial_export import spec_of

run = choose_run()


def choose_two(measured: list[TrialRecord]) -> tuple[TrialRecord, TrialRecord]:
    """Let the reader choose two trials: the best and the baseline unless the link says otherwise."""
    named = {f"{record.number}: {record.label} ({record.source})": record for record in measured}
    wanted = (run.best or measured[-1], run.baseline or measured[0])
    chosen = []
    for column, key, first in zip(st.columns(2), ("a", "b"), wanted, strict=True):
        # The default comes first: an address that names no trial means it.
        labels = [label for label, record in named.items() if record is first]
        labels += [label for label, record in named.items() if record is not first]
        if st.session_state.get(key, labels[0]) not in labels:
            st.session_state[key] = labels[0]
        chosen.append(named[column.selectbox(f"Trial {key.upper()}", labels, key=key, bind=BOUND)])
    return chosen[0], chosen[1]


def compare(a: TrialRecord, b: TrialRecord) -> None:
    """Show in what two trials differ: flags, curves, memory."""
    left, right = st.columns(2)
    with left:
        st.markdown("**Flags that differ**")
        names = (f"A: trial {a.number}", f"B: trial {b.number}" if b.number != a.number else "B: the same")
        specs = [spec_of(record, run.manifest, Parameters()) for record in (a, b)]
        differing = tables.flag_difference(specs[0], specs[1], names)
        if differing.empty:
            st.caption("None: both launch the same command.")
        else:
            table(differing, "flags")
    with right:
        quantity = st.segmented_control(
            "Over the clients", list(run_charts.CURVES), default="output tok/s", required=True, key="curve", bind=BOUND,
            wrap=True,
        )  # fmt: skip
        st.plotly_chart(run_charts.two_curves(a, b, quantity), key="curves", alt=f"{quantity} over clients")
        show_ledgers(a, b)


def show_ledgers(a: TrialRecord, b: TrialRecord) -> None:
    """Draw both memory ledgers."""
    st.markdown("**Memory of one GPU**")
    try:
        named = {f"{side}: {record.label}": run.ledger(record) for side, record in (("A", a), ("B", b))}
    except InputError as error:
        st.caption(as_markdown(f"No ledgers: {error}."))
        return
    st.plotly_chart(run_charts.ledgers(named), key="ledgers", alt="Memory of one GPU by owner for both trials")


def answer(seen: RunView) -> str:
    """Return what was found in one sentence."""
    points = sum(len(record.points) for record in seen.records)
    if not seen.measured:
        return "No configuration has been measured yet."
    winner = seen.winner
    if winner is None or winner.first.target is None:
        return f"{points} points of {len(seen.measured)} launches; none keeps the limits."
    low, high = winner.interval
    return (
        f"{winner.first.label} leads with {winner.output_tok_s:,.0f} tok/s (95 % interval {low:,.0f} to {high:,.0f}), "
        f"{winner.first.target.user_tok_s:.1f} per user, among {points} points of {len(seen.measured)} launches."
    )


st.subheader(as_markdown(answer(run)))
if run.measured:
    place = st.container()
    st.markdown("**Two configurations side by side**")
    a, b = choose_two(list(run.measured))
    with place:
        st.plotly_chart(
            run_charts.pareto(run.records, run.slos, [a.number, b.number]), key="pareto",
            alt="Output tokens per second and GPU against tokens per second and user, all measured points",
        )  # fmt: skip
        st.caption("Shapes: MTP depth 0 circle, 1 diamond, 2 square, 3 triangle; hollow: a limit is missed.")
    compare(a, b)
if run.records:
    every = st.toggle("Also what was ruled out without a launch", key="all", bind=BOUND)
    shown = run.records if every else run.launched
    st.markdown(f"**Trials** ({len(shown)} of {len(run.records)})")
    table(tables.trials(shown), "trials")
command(
    f"optuna-dashboard sqlite:///{shlex.quote(str(run.path / 'study.db'))}",
    "Importances, parallel coordinates and slices of the same study: pip install optuna-dashboard, then",
)
