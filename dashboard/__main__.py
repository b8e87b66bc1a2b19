"""Serves the pages: Streamlit's own `run`, with what the first page needs loaded before anybody waits for it.

Arguments are Streamlit's (`python -m dashboard --server.port 8501`); the folder of runs is in SGTUNE_RUNS.
"""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit.web.cli import main

from dashboard.charts import learning_charts, tables
from dashboard.charts import plan_charts as charts
from dashboard.readers.explanations import explained
from dashboard.readers.plan_inputs import PlanInputs
from models.version import NEWEST


def warm_up() -> None:
    """Answer one question and draw it: plotly and pandas load their parts at first use, more than a second's worth."""
    inputs = PlanInputs(hardware="h200x8", sglang_version=NEWEST, isl=1000, osl=1000, concurrency=64)
    plan = inputs.plan()
    best = plan.found.candidates[0]
    for figure in (
        charts.interactivity(plan, inputs.curves(), 0),
        charts.memory_waterfall(best.ledger),
        charts.step_costs({"step": best.prediction.breakdown_ms}),
        learning_charts.identity(()),
    ):
        figure.to_json()
    tables.ranked(plan)
    tables.numbers(explained(plan, best))


if __name__ == "__main__":
    warm_up()
    main(["run", str(Path(__file__).parent / "streamlit_app.py"), *sys.argv[1:]], prog_name="streamlit")
