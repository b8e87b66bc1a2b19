"""Figures as pure functions: what is drawn is what the values say, and colours mean the same everywhere."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from dashboard_scenes import live_trial, measured_machine
from typical import filled

from dashboard.charts import learning_charts, run_charts, tables
from dashboard.charts import plan_charts as charts
from dashboard.charts.colours import COLOURS, Family, colour_of, family_of, symbol_of
from dashboard.readers.commands import off_by
from dashboard.readers.learning import MOST_POINTS, calibrated
from dashboard.readers.plan_inputs import PlanInputs
from dashboard.readers.runs import read_run
from hwprobe.findings import compare, findings
from models.config import ServerConfig, Speculative
from models.workload import Slo
from planner.plans.candidates import Rejected
from planner.plans.frontier import pareto_front
from tuner.evidence.load_history import LoadSample
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.evidence.trial_lines import read_trials
from tuner.seam import FailureKind

ASKED = PlanInputs(
    hardware="h200x8", sglang_version="0.5.12", isl=500, osl=500, concurrency=64, slo=("tpot:mean<25ms",)
)


@pytest.fixture(scope="module")
def records(finished: Path) -> list[TrialRecord]:
    return read_trials(finished / "trials.jsonl")


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def assert_complete(figure: go.Figure) -> None:
    """Every figure can be sent to a browser and names its axes with their units."""
    json.loads(figure.to_json())
    assert figure.layout.xaxis.title.text
    assert figure.layout.uirevision


def test_memory_adds_up_to_the_card() -> None:
    best = ASKED.plan().found.candidates[0]
    figure = charts.memory_waterfall(best.ledger)
    assert_complete(figure)
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(best.ledger.card_gib)
    ends = [bar.base[0] + bar.x[0] for bar in figure.data]
    assert [bar.base[0] for bar in figure.data] == pytest.approx([0.0, *ends[:-1]])


def test_throughput_against_interactivity() -> None:
    plan, drawn = ASKED.plan(), ASKED.curves()
    figure = charts.interactivity(plan, drawn, 0)
    assert_complete(figure)
    markers = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(markers) == len(plan.found.candidates)
    for curve, marker in zip(drawn, markers, strict=True):  # a curve ends at the marker of the asked clients
        assert (curve.user_tok_s[-1], curve.tok_s_per_gpu[-1]) == (marker.x[0], marker.y[0])
        assert curve.clients == (4, 8, 16, 32, 64)
        assert curve.tok_s_per_gpu[0] < curve.tok_s_per_gpu[-1]
    hollow = [trace.marker.symbol.endswith("-open") for trace in markers]
    assert hollow == [bool(candidate.misses) for candidate in plan.found.candidates]
    assert figure.layout.shapes[0].x0 == 40.0  # 25 ms per token are 40 tok/s
    legend = [trace.name for trace in markers if trace.showlegend]
    assert len(legend) == len(set(legend))
    front = traces(figure, "Pareto front")
    assert len(front) == (1 if len(plan.pareto()) > 1 else 0)


def test_without_a_tpot_limit_no_region_is_shaded() -> None:
    plan = replace(ASKED, slo=("ttft:p99<60s",)).plan()
    assert not charts.interactivity(plan, replace(ASKED, slo=("ttft:p99<60s",)).curves(), 0).layout.shapes
    assert charts.speed_limit([Slo.parse("tpot:mean<50ms"), Slo.parse("tpot:p99<100ms")]) == 20.0


def test_step_costs_lose_nothing() -> None:
    parts = ASKED.plan().found.candidates[0].prediction.breakdown_ms
    figure = charts.step_costs({"before": parts, "after": {name: 2 * ms for name, ms in parts.items()}})
    after, before = (sum(bar.x[row] for bar in figure.data) for row in (0, 1))
    assert before == pytest.approx(sum(parts.values()), abs=0.1)
    assert after == pytest.approx(2 * before)


def test_every_family_has_a_colour_of_its_own() -> None:
    assert len(set(COLOURS.values())) == len(Family)
    layouts = {
        Family.TP: filled(), Family.TP_EP: filled(ep_size=8), Family.SOME_DP: filled(attn_dp_size=2),
        Family.SOME_DP_EP: filled(attn_dp_size=4, ep_size=8), Family.DP: filled(attn_dp_size=8),
        Family.DP_EP: filled(attn_dp_size=8, ep_size=8), Family.PP: filled(pp_size=2),
        Family.DEEPEP: filled(attn_dp_size=8, ep_size=8, moe_a2a_backend="deepep"),
    }  # fmt: skip
    assert {family: family_of(config) for family, config in layouts.items()} == {each: each for each in Family}
    deeper = filled(speculative=Speculative.chain(3))
    assert colour_of(deeper) == colour_of(filled())
    assert symbol_of(deeper) != symbol_of(filled())


def test_colours_are_the_same_on_all_pages(records: list[TrialRecord]) -> None:
    for figure in (
        run_charts.pareto(records, (), []), run_charts.history(records, None, None), learning_charts.identity(records),
        learning_charts.residuals(records, "layout"), charts.interactivity(ASKED.plan(), ASKED.curves(), 0),
    ):  # fmt: skip
        assert_complete(figure)
        seen = [trace for trace in figure.data if trace.name in set(Family) and trace.mode == "markers"]
        assert seen
        assert all(trace.marker.color == COLOURS[Family(trace.name)] for trace in seen)


def test_measured_against_the_data_sheet() -> None:
    figure = charts.against_sheet(findings(measured_machine()))
    assert_complete(figure)
    good, doubtful = traces(figure, "measured (median GPU)")[0], traces(figure, "to look at")[0]
    assert list(doubtful.y) == ["memory read", "memory copy", "memory triad"]
    assert "BF16 GEMM" in good.y
    assert good.x[list(good.y).index("BF16 GEMM")] == pytest.approx(100 * 790 / 989)
    slowest = traces(figure, "slowest GPU")[0]
    assert slowest.x[0] == pytest.approx(100 * 0.78 * 4370 / 4800)
    assert charts.against_sheet(()).layout.annotations[0].text == "nothing measured has a data sheet"


def test_links_and_two_machines() -> None:
    machine = measured_machine()
    assert machine.p2p_gb_s
    figure = charts.heat_map(machine.p2p_gb_s, "GB/s")
    assert_complete(figure)
    assert figure.data[0].z[0][0] is None
    assert figure.data[0].text[7][0] == "320"
    changes = compare(machine, measured_machine("other", slow=0.99))
    figure = charts.changes_between(changes)
    assert_complete(figure)
    assert len(figure.data[0].y) == len(changes)
    assert charts.changes_between(()).layout.annotations


def test_the_ladder_fills_in(records: list[TrialRecord]) -> None:
    target = [record for record in records if record.target][1]
    for measured in range(len(target.points) + 1):
        figure = run_charts.ladder(live_trial(target, target.points[:measured]), records[0], records[0])
        assert_complete(figure)
        own = next(trace for trace in figure.data if str(trace.name).startswith(f"trial {target.number}"))
        assert len(own.x or ()) == measured
        assert set(figure.layout.xaxis.tickvals) >= {point.concurrency for point in target.points[:measured]}
    assert_complete(run_charts.ladder(None, None, None))


def test_history_never_falls_and_names_its_levels(records: list[TrialRecord]) -> None:
    failed = replace(records[1], number=99, outcome=TrialOutcome.INFEASIBLE, failure=FailureKind.OOM_KV, points=())
    figure = run_charts.history([*records, failed], records[0], 5000.0)
    best = traces(figure, "best so far")[0].y
    assert list(best) == sorted(best)
    assert list(traces(figure, "no figure")[0].x) == [99]
    assert [note.text.split(" ")[0] for note in figure.layout.annotations] == ["SGLang's", "predicted"]
    bars = run_charts.failures([*records, failed, failed]).data[0]
    assert (list(bars.y), list(bars.x)) == (["oom_kv"], [2])


def test_the_front_of_all_measured_points(records: list[TrialRecord]) -> None:
    figure = run_charts.pareto(records, (Slo.parse("tpot:mean<40ms"),), [records[0].number])
    points = [(p.output_tok_s / r.config.gpu_count, p.user_tok_s) for r in records for p in r.points]
    front = traces(figure, "Pareto front")[0]
    assert len(front.x) == len(pareto_front(points))
    assert sum(len(trace.x) for trace in figure.data if trace.name in set(Family)) == len(points)
    assert len(traces(figure, f"trial {records[0].number}")[0].x) == len(records[0].points)
    assert figure.layout.shapes[0].x0 == 25.0


def test_predicted_against_measured(records: list[TrialRecord]) -> None:
    measured = [record for record in records if record.target]
    figure = learning_charts.identity(records)
    line = traces(figure, "measured = predicted")[0]
    assert list(line.x) == list(line.y)
    assert sum(len(trace.x) for trace in figure.data if trace.name in set(Family)) == len(measured)
    figure = learning_charts.residuals(records, "mtp_steps")
    drawn = sorted(value for trace in figure.data for value in trace.y)
    assert drawn == pytest.approx(sorted(100 * (off_by(record) or 0.0) for record in measured))
    assert learning_charts.knob_value(measured[0], "no_such_knob") == "-"


@pytest.mark.parametrize("quantity", run_charts.CURVES)
def test_several_trials_over_the_clients(records: list[TrialRecord], quantity: str) -> None:
    compared = [record for record in records if record.target][:3]
    figure = run_charts.curves(compared, quantity)
    assert_complete(figure)
    assert figure.layout.yaxis.title.text == quantity
    assert [len(trace.x) for trace in figure.data] == [len(record.points) for record in compared]
    assert len({trace.line.dash for trace in figure.data}) == len(compared)
    bars = figure.data[0].error_y.array
    assert (bars is not None) is (quantity == run_charts.RATE)
    if bars is not None:
        assert list(bars) == [point.output_tok_s_interval[1] - point.output_tok_s for point in compared[0].points]


def test_a_servers_load_over_time() -> None:
    samples = [
        LoadSample(at_s=1000.0 + second, clients=16, running=float(second), queued=2.0, kv_share=0.1 * second)
        for second in range(4)
    ]
    figure = run_charts.load_over_time(samples)
    drawn = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert drawn["running"] == ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    assert drawn["queued"][1] == [2.0] * 4
    assert drawn["KV cache in use"][1] == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_layouts_that_fell_for_the_same_reason_share_a_row() -> None:
    items = [
        Rejected(config=ServerConfig(tp_size=size), reason=why, kind="does not fit")
        for size, why in ((4, "3.1 GiB short"), (8, "4 GiB short"), (16, "no room"))
    ]
    folded = tables.rejected(items)
    assert list(folded["layouts"]) == [2, 1]
    assert list(folded["which"]) == ["TP4, TP8", "TP16"]


def test_trials_show_the_interval_of_each_rate(records: list[TrialRecord]) -> None:
    shown = tables.trials(records)
    for record, text in zip(records, shown["95 % interval"], strict=True):
        target = record.target
        assert text == ("" if target is None else "{:,.0f} to {:,.0f}".format(*target.output_tok_s_interval))


def test_calibration_before_and_after(finished: Path) -> None:
    learned = calibrated(read_run(finished.parent, finished.name))
    assert len(learned.names) == len(set(learned.names)) <= MOST_POINTS
    figure = learning_charts.before_and_after(learned)
    assert_complete(figure)
    before, after = (
        sum(abs(math.log(x / y)) for x, y in zip(trace.x, trace.y, strict=True))
        for name in ("before", "after")
        for trace in traces(figure, name)
    )
    assert after < before
    spreads = learning_charts.parameters(learned.calibration)
    assert_complete(spreads)
    assert traces(spreads, "before")[0].x == (1.0,) * len(learned.calibration.parameters)
    wide, narrow = (sum(traces(spreads, name)[0].error_x.array) for name in ("before", "after"))
    assert narrow < wide


def test_ledgers_side_by_side() -> None:
    first, second = ASKED.plan().found.candidates[:2]
    figure = run_charts.ledgers({"A": first.ledger, "B": second.ledger})
    assert sum(bar.x[1] for bar in figure.data) == pytest.approx(first.ledger.card_gib)


def test_with_nothing_to_draw_a_figure_says_so() -> None:
    for figure in (
        run_charts.pareto((), (), []),
        learning_charts.identity(()),
        learning_charts.residuals((), "layout"),
    ):
        assert_complete(figure)
        assert figure.layout.annotations[0].text == "nothing measured yet"
