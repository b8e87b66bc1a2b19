"""The dashboard's entry: its pages and nothing else. Started by `sgtune dashboard`."""

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent

st.set_page_config(page_title="sgtune", page_icon=str(HERE / "icon.png"), layout="wide")
PAGES = {
    "plan": ("Plan", ":material/calculate:", "Does it fit, how fast, with which flags: answered from physics."),
    "recorded_traffic": (
        "Traffic",
        ":material/stacked_line_chart:",
        "What a trace of requests holds, and servers under it.",
    ),
    "hardware": ("Hardware", ":material/memory:", "What the machine measures against its data sheet."),
    "live": ("Live", ":material/monitoring:", "What a tune is doing now, and the best so far."),
    "trials": ("Trials", ":material/scatter_plot:", "Every measured configuration; several side by side."),
    "calibration": ("Calibration", ":material/target:", "Predicted against measured, and what was learned."),
    "running_servers": (
        "Servers",
        ":material/dns:",
        "Servers that run now: what they should do, and what to change.",
    ),
    "export": ("Export", ":material/download:", "Launch files with their provenance, to copy and download."),
}
page = st.navigation(
    [
        st.Page(f"app_pages/{name}.py", title=title, icon=icon, help=text, default=name == "plan")
        for name, (title, icon, text) in PAGES.items()
    ],
    position="sidebar",  # at the top, names that do not fit are hidden behind "2 more"
    expanded=True,
)
page.run()
