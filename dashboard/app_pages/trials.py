"""Trials: every measured point, the table behind it, and configurations side by side."""

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

# More than these cannot be told apart in one figure.
MOST_COMPARED = 6
run = choose_run()


def choose(measured: list[TrialRecord]) -> list[TrialRecord]:
    """Let the reader choose trials to compare: the best and the baseline unless the link says otherwise."""
    labels = {f"{record.number}: {record.label} ({record.source})": record for record in measured}
    defaults = (run.best or measured[-1], run.baseline or measured[0])
    first = [label for label, record in labels.items() if record in defaults]
    if any(label not in labels for label in st.session_state.get("compared", ())):
        del st.session_state["compared"]
    labels_chosen = st.multiselect(
        "Trials compared", list(labels), default=first, key="compared", bind=BOUND, max_selections=MOST_COMPARED,
        placeholder="choose two or more",
    )  # fmt: skip
    return [labels[label] for label in labels_chosen]


def compare(chosen: list[TrialRecord]) -> None:
    """Show in what trials differ: flags, curves, memory."""
    st.markdown("**Flags that differ**")
    served = Parameters(model_path=run.manifest.served_path)
    differing = tables.flag_difference(
        {f"trial {record.number}": spec_of(record, run.manifest, served) for record in chosen}
    )
    if differing.empty:
        st.caption("None: all launch the same command.")
    else:
        table(differing, "flags")
    left_column, right_column = st.columns(2)
    with left_column:
        quantity = st.segmented_control(
            "Over the clients", list(run_charts.CURVES), default=run_charts.RATE, required=True, key="curve",
            bind=BOUND, wrap=True,
        )  # fmt: skip
        st.plotly_chart(run_charts.curves(chosen, quantity), key="curves", alt=f"{quantity} over clients")
    with right_column:
        show_ledgers(chosen)


def show_ledgers(chosen: list[TrialRecord]) -> None:
    """Draw the memory ledgers."""
    st.markdown("**Memory of one GPU**")
    try:
        named = {f"{record.number}: {record.label}": run.ledger(record) for record in chosen}
    except InputError as error:
        st.caption(as_markdown(f"No ledgers: {error}."))
        return
    st.plotly_chart(run_charts.ledgers(named), key="ledgers", alt="Memory of one GPU by owner for each trial")


def answer(view: RunView) -> str:
    """Return the result in one sentence."""
    points = sum(len(record.points) for record in view.records)
    if not view.measured:
        return "No configuration has been measured yet."
    winner = view.winner
    if winner is None or winner.first.target is None:
        return f"{points} points of {len(view.measured)} launches; none keeps the limits."
    low, high = winner.interval
    return (
        f"{winner.first.label} leads with {winner.output_tok_s:,.0f} tok/s (95 % interval {low:,.0f} to {high:,.0f}), "
        f"{winner.first.target.user_tok_s:.1f} per user, among {points} points of {len(view.measured)} launches."
    )


st.subheader(as_markdown(answer(run)))
if run.measured:
    place = st.container()
    st.markdown("**Configurations side by side**")
    compared = choose(list(run.measured))
    with place:
        st.plotly_chart(
            run_charts.pareto(run.records, run.slos, [record.number for record in compared]), key="pareto",
            alt="Output tokens per second and GPU against tokens per second and user, all measured points",
        )  # fmt: skip
        st.caption("Shapes: MTP depth 0 circle, 1 diamond, 2 square, 3 triangle; hollow: a limit is missed.")
    if len(compared) > 1:
        compare(compared)
    else:
        st.caption("Choose two trials or more.")
if run.records:
    every = st.toggle("Also what was ruled out without a launch", key="all", bind=BOUND)
    shown = run.records if every else run.launched
    st.markdown(f"**Trials** ({len(shown)} of {len(run.records)})")
    table(tables.trials(shown), "trials")
command(
    f"optuna-dashboard sqlite:///{shlex.quote(str(run.path / 'study.db'))}",
    "Importances, parallel coordinates and slices of the same study: pip install optuna-dashboard, then",
)
