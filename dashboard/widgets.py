"""What pages share: the run they speak of, figures, tables, and the command that says the same in a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final, Literal, NoReturn

import pandas as pd
import streamlit as st

from dashboard.readers.runs import RunView, Status, read_run, run_names, runs_folder
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown, one_line
from tuner.choices import SIMULATED

FIRST_RUN = (
    "sgtune tune --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024 --engine simulated --trials 12 --runs {}"
)
LOOK_AGAIN_S = 3.0
# A table of more rows than this scrolls.
MOST_ROWS = 16
STATUS_COLOURS: dict[Status, Literal["gray", "blue", "green", "orange", "red"]] = {
    Status.EMPTY: "gray",
    Status.RUNNING: "blue",
    Status.FINISHED: "green",
    Status.INTERRUPTED: "orange",
    Status.FAILED: "red",
}
BOUND: Final = "query-params"


def choose_run() -> RunView:
    """Let the reader choose a run in the sidebar and return it; without one, say how to start one and stop the page."""
    root = runs_folder()
    names = run_names(root)
    if not names:
        _wait_for_a_run()
    linked = st.session_state.get("run", st.query_params.get("run"))
    if linked not in names:
        if linked is not None:
            st.warning(as_markdown(f"Run '{one_line(str(linked))}' is not in {root} (any more); showing '{names[0]}'."))
        st.session_state["run"] = names[0]
    else:
        st.session_state["run"] = linked
    with st.sidebar:
        name = st.selectbox("Run", names, key="run", persist_state="session", help=f"Run folders of `{root}`")
    # Not bound: the newest run, too, is named in the address, so that a link keeps meaning it.
    st.query_params["run"] = name
    try:
        run = read_run(root, name)
    except InputError as error:
        stop(str(error))
    _describe(run)
    for note in run.notes:
        st.warning(as_markdown(note))
    return run


def stop(reason: str) -> NoReturn:
    """Say why there is nothing to see, and end the page."""
    st.error(as_markdown(reason))
    st.stop()


def tile(label: str, value: str, below: str) -> None:
    """Show a figure in a frame, with a plain line below it."""
    st.metric(label, value, below, delta_color="off", delta_arrow="off", border=True)


def table(frame: pd.DataFrame, key: str, widths: Mapping[str, int] | None = None) -> None:
    """Show a table with thousands set apart, columns as wide as their content or as told, in pixels."""
    numbers = set(frame.select_dtypes("number").columns)
    columns = {
        name: st.column_config.NumberColumn(format="localized", width=(widths or {}).get(name))
        if name in numbers
        else st.column_config.Column(width=(widths or {}).get(name))
        for name in frame.columns
    }
    height: Literal["content", "auto"] = "content" if len(frame) <= MOST_ROWS else "auto"
    st.dataframe(frame, hide_index=True, key=key, column_config=columns, height=height)


def machines_of_runs() -> dict[str, str]:
    """Return the machines of the runs: a name to choose, and the file."""
    root = runs_folder()
    return {f"run {name}": str(root / name / "hardware.json") for name in run_names(root)}


def command(line: str, says: str = "The same in a terminal") -> None:
    """Show the command line that gives what the page shows."""
    st.caption(as_markdown(says))
    st.code(line, language="bash", wrap_lines=True)


def _wait_for_a_run() -> NoReturn:
    root = runs_folder()
    st.subheader(f"There is no run in `{root}` yet.")
    st.write("Start one, here without any GPU; this page shows it as soon as it is there:")
    st.code(FIRST_RUN.format(shlex.quote(str(root))), language="bash", wrap_lines=True)
    _look_again()
    st.stop()


@st.fragment(run_every=LOOK_AGAIN_S)
def _look_again() -> None:
    if run_names(runs_folder()):
        st.rerun()


def _describe(run: RunView) -> None:
    manifest = run.manifest
    with st.sidebar:
        st.badge(run.status, color=STATUS_COLOURS[run.status])
        if manifest.simulated:
            st.badge(SIMULATED, color="orange")
        limits = f"  \nlimits: {as_markdown(', '.join(manifest.slo))}" if manifest.slo else ""
        world = f" (world: {manifest.world})" if manifest.simulated else ""
        lengths = "" if manifest.traffic else f"{manifest.isl:,} in / {manifest.osl:,} out, "
        st.caption(
            as_markdown(f"{manifest.hardware}, SGLang {manifest.sglang_version}, {manifest.engine} engine{world}")
            + "  \n"
            f"{lengths}{as_markdown(manifest.load)}  \n"
            f"objective: {manifest.objective}{limits}"
        )
