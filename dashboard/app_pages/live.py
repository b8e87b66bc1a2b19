"""Live: what a tune is doing now. Refreshes itself while it runs, and stops when it is over."""

import time

import streamlit as st

from dashboard.charts import run_charts
from dashboard.readers.commands import (
    amount,
    ceiling_of,
    duration,
    gain_of,
    percent,
    progress_of,
    rate_of,
    run_answer,
    tune_command,
)
from dashboard.readers.runs import RunView, Status, load_samples, log_tail, read_run
from dashboard.widgets import choose_run, command, tile
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown, clean

REFRESH_S = 2.0
# A log of more lines than this scrolls, within so many pixels.
SHORT_LOG, LOG_PX = 14, 320
run = choose_run()
over = run.status in (Status.FINISHED, Status.FAILED)


@st.fragment(run_every=None if over else REFRESH_S)
def watch() -> None:
    """Read the run again and show it; a change of status concerns the whole page."""
    try:
        now = read_run(run.path.parent, run.name)
    except InputError as error:
        st.error(as_markdown(f"{error}; choose another in the sidebar"))
        return
    if now.status is not run.status:
        st.rerun()
    st.subheader(as_markdown(run_answer(now)))
    show_state(now)
    show_figures(now)
    left_column, right_column = st.columns(2)
    with left_column:
        show_ladder(now)
    with right_column:
        st.markdown("**Every launch so far**")
        st.plotly_chart(
            run_charts.history(now.records, now.baseline, ceiling_of(now)), key="history",
            alt="Output tokens per second of each trial with the best so far",
        )  # fmt: skip
    show_load(now)
    show_failures(now)
    show_log(now)


def show_state(now: RunView) -> None:
    """Say which phase it is in and for how long, or how it ended."""
    live = now.live
    if now.status is Status.RUNNING and live is not None:
        trial = live.trial
        which = f"trial {trial.number} ({trial.source}), {trial.config.label}: " if trial else ""
        which = as_markdown(which + live.phase)
        st.info(f"{which} for {duration(time.time() - live.phase_began_s)}", icon=":material/timer:")
        for other in live.beside:
            since = duration(time.time() - other.began_s)
            line = f"beside it, trial {other.number} ({other.source}), {other.config.label}: {other.phase}"
            st.caption(as_markdown(f"{line}; launched {since} ago, {amount(len(other.points), 'point')} so far"))
    elif now.status is Status.FAILED and live is not None:
        st.error(as_markdown(live.message))
    elif now.status is Status.INTERRUPTED:
        st.warning("No process is at work on this run. The command below goes on with it.")


def show_figures(now: RunView) -> None:
    """Show how far it is, and the best against the baseline and the ceiling."""
    progress, best, ceiling = progress_of(now), now.best, ceiling_of(now)
    if not now.running and now.winner:
        best = now.winner.first
    rate = rate_of(now, best) if best else None
    gain = None if rate is None else gain_of(now, rate)
    again = len(now.launched) - progress.launches
    base, of_asked = now.baseline, f" of {progress.asked}" if progress.asked else ""
    budget = "no budget" if progress.budget_s is None else f"of {duration(progress.budget_s)}"
    with st.grid(5, min_column_width=150):
        tile("Launches", f"{progress.launches}{of_asked}", f"{again} more to confirm" if again else "of the search")
        tile(
            "Best, output tok/s",
            "-" if rate is None else f"{rate:,.0f}",
            f"trial {best.number}" if best else "none yet",
        )
        tile("Over defaults", "-" if gain is None else percent(gain),
             "no baseline" if base is None else f"{rate_of(now, base):,.0f} tok/s")  # fmt: skip
        tile("Of the ceiling", "-" if rate is None or not ceiling else f"{100 * rate / ceiling:.0f} %",
             f"{ceiling:,.0f} tok/s" if ceiling else "unknown")  # fmt: skip
        tile(
            "Engine time",
            duration(progress.spent_s),
            budget if progress.eta_s is None else f"{duration(progress.eta_s)} to go",
        )
    if progress.asked and now.running:
        st.progress(
            min(1.0, progress.launches / progress.asked), f"{amount(progress.launches, 'launch', 'launches')} done"
        )


def show_ladder(now: RunView) -> None:
    """Draw the current trial's points as they come, before the best and the baseline."""
    trial = now.live.trial if now.live and now.running else None
    title = f"Trial {trial.number}, {amount(len(trial.points), 'point')} so far" if trial else "Ladders"
    st.markdown(f"**{title}**")
    st.plotly_chart(
        run_charts.ladder(trial, now.best, now.baseline), key="ladder", alt="Output tokens per second over clients"
    )


def show_load(now: RunView) -> None:
    """Draw what the server ran, queued and held in its KV cache while it was measured."""
    trial = now.live.trial if now.live and now.running else None
    number = trial.number if trial else now.launched[-1].number if now.launched else None
    st.markdown("**Running, queued and KV cache over time**" + ("" if number is None else f", trial {number}"))
    samples = [] if number is None else load_samples(now, number)
    if not samples:
        st.caption("No server was asked: the simulated engine starts none." if now.launched else "Nothing yet.")
        return
    st.plotly_chart(run_charts.load_over_time(samples), key="load", alt="Requests running and queued, KV use, by time")


def show_failures(now: RunView) -> None:
    """Draw failed launches by class, where there are any."""
    failed = [record for record in now.launched if record.target is None]
    if not failed:
        st.caption("No launch failed.")
        return
    st.markdown("**Failures by class**")
    left_column, right_column = st.columns([2, 3])
    left_column.plotly_chart(run_charts.failures(now.records), key="failures", alt="Failed launches by class")
    last = failed[-1]
    right_column.caption(as_markdown(f"The last one, trial {last.number} ({last.label}):"))
    right_column.code(clean(last.reason) or "no reason recorded", language=None, wrap_lines=True, height=160)


def show_log(now: RunView) -> None:
    """Show the end of the server's log: the running trial's, else the last launched."""
    trial = now.live.trial if now.live and now.running else None
    number = trial.number if trial else now.launched[-1].number if now.launched else None
    text = "" if number is None else log_tail(now, number)
    if not text:
        st.caption("No server log: the simulated engine starts no server." if now.launched else "No server log yet.")
        return
    st.caption(as_markdown(f"End of {now.path / 'trials' / str(number) / 'server.log'}"))
    st.code(text, language=None, height=LOG_PX if text.count("\n") >= SHORT_LOG else "content")


watch()
resume = run.status in (Status.INTERRUPTED, Status.FAILED)
command(tune_command(run, resume=resume), "This continues the run" if resume else "The command of this run")
