"""Servers: what runs now, beside the model of exactly it, and what to change. Reads, and refreshes itself."""

import streamlit as st

from dashboard.readers.live_servers import RollingWindow, looked_at, urls
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown, clean
from tuner.advise.finding import Finding
from tuner.advise.look import ServerAnswer

REFRESH_S = 15.0


def windows() -> list[RollingWindow]:
    """Return this visitor's windows, begun at the first look."""
    if "server_windows" not in st.session_state:
        st.session_state.server_windows = [RollingWindow(url) for url in urls()]
    return list(st.session_state.server_windows)


@st.fragment(run_every=REFRESH_S if urls() else None)
def watch() -> None:
    """Look again and show it."""
    if not urls():
        st.subheader("No server was named.")
        st.caption("Start the dashboard with sgtune dashboard --url http://HOST:30000 to see what it does.")
        return
    try:
        answer = looked_at(windows())
    except InputError as error:
        st.error(as_markdown(str(error)))
        return
    count = len(answer.findings)
    st.subheader("Nothing to change was found." if not count else f"{count} thing{'s' * (count > 1)} to change")
    for finding in answer.findings:
        show_finding(finding)
    for server in answer.servers:
        show_server(server)


def show_finding(finding: Finding) -> None:
    """Show one finding with its launch lines."""
    gain = f", +{finding.gain_percent:.0f} % as predicted" if finding.gain_percent >= 0.5 else ""
    st.markdown(f"**{as_markdown(f'{finding.kind} on {finding.server}{gain}')}**")
    st.markdown(as_markdown(finding.evidence))
    st.markdown(as_markdown(f"Change: {finding.change}"))
    if finding.after:
        st.code(clean(finding.after), language="bash", wrap_lines=True)


def show_server(server: ServerAnswer) -> None:
    """Show what was seen of one server beside what was expected."""
    engine = server.facts.engine or "unknown engine"
    st.markdown(f"**{as_markdown(f'{server.facts.name}: {engine}')}**")
    for note in server.facts.notes:
        st.caption(as_markdown(note))
    observed, model = server.seen, server.model
    if observed is None or model is None:
        st.caption(as_markdown(f"No expectation: {server.unexpected or 'it was not understood'}"))
        return
    base = model.base
    st.table(
        {
            "": ["TTFT mean, ms", "TPOT mean, ms", "output tok/s", "in flight"],
            "seen": [
                _text(observed.ttft_ms.get("mean")), _text(observed.tpot_ms.get("mean")), _text(observed.output_tok_s),
                _text(observed.in_flight),
            ],
            "expected": [
                _text(base.ttft_ms["mean"]), _text(base.tpot_ms["mean"]), _text(base.output_tok_s), "",
            ],
        }
    )  # fmt: skip


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


watch()
