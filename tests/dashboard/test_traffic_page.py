"""The page Traffic: traces, what sgtune printed of them, and files that are neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboard.charts import traffic_charts
from dashboard.readers.traffic_file import MOST_TRACE_BYTES, view_of
from hwprobe.errors import InputError
from tests.dashboard.test_pages import open_page, said, tile

EXAMPLES = Path(__file__).parents[2] / "examples" / "traffic"
Sgtune = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example trace, where the dashboard was started."""
    shutil.copy(EXAMPLES / "chat.jsonl", tmp_path / "chat.jsonl")
    monkeypatch.setenv("SGTUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_file_it_says_what_it_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("recorded_traffic", root, monkeypatch)
    assert "Name a file of requests" in said(app)
    assert app.selectbox(key="traffic").options == ["chat.jsonl"]


def test_a_trace_shows_its_lengths_arrivals_and_hits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("recorded_traffic", root, monkeypatch, traffic="chat.jsonl")
    assert "chat.jsonl: 1,689 requests in 35 min" in said(app)
    assert tile(app, "Prompt mean, tokens") == "3,201"
    assert tile(app, "Seen before") == "96.0%"
    assert "sgtune traffic" in app.code[-1].value


def test_a_trace_is_planned_for_a_machine_minute_by_minute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (root / "chat.jsonl").read_text().splitlines(keepends=True)[:200]
    (root / "short.jsonl").write_text("".join(lines))
    app = open_page("recorded_traffic", root, monkeypatch, traffic="short.jsonl", hw="h200x8", slo="tpot:mean<20ms")
    shown = "\n".join(str(each.value) for each in app.markdown)
    assert "on h200x8 keeps tpot:mean" in shown
    assert any("sgtune plan --hardware h200x8 --traffic" in code.value for code in app.code)


def test_what_sgtune_printed_is_shown_as_the_trace_is(
    sgtune: Sgtune, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "traffic.json").write_text(sgtune("traffic", "chat.jsonl", "--json").out)
    assert view_of("traffic.json").summary == view_of("chat.jsonl").summary
    app = open_page("recorded_traffic", root, monkeypatch, traffic="traffic.json")
    assert tile(app, "Prompt mean, tokens") == "3,201"


def test_the_minutes_of_a_finished_plan_are_those_it_printed(
    sgtune: Sgtune, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (root / "chat.jsonl").read_text().splitlines(keepends=True)[:200]
    (root / "short.jsonl").write_text("".join(lines))
    printed = sgtune("plan", "--hardware", "h200x8", "--traffic", "short.jsonl", "--rate-scale", "8", "--slo",
                     "tpot:mean<13ms", "--json").out  # fmt: skip
    (root / "plan.json").write_text(printed)
    told = json.loads(printed)["traffic"]["minutes"]
    plan = view_of("plan.json").plan
    assert plan is not None
    over = sum(minute["missed_share"] > 0 for minute in told)
    assert (len(plan.traffic.minutes), plan.minutes_over) == (len(told), over)
    app = open_page("recorded_traffic", root, monkeypatch, traffic="plan.json")
    assert f"{over} of {len(told)} minutes have requests over a limit" in "\n".join(str(m.value) for m in app.markdown)
    bars = traffic_charts.minutes(plan.traffic.minutes).data
    assert sum(bars[0].y) + sum(bars[1].y) == pytest.approx(sum(minute["requests"] for minute in told))


def test_figures_are_those_of_the_document(root: Path) -> None:
    shown = view_of("chat.jsonl").summary
    assert shown is not None
    figure = traffic_charts.arrivals(shown)
    assert sum(figure.data[0].y) * shown.arrivals.bin_s == pytest.approx(shown.requests)
    curve = traffic_charts.hit_curve(shown, 1e6).data[0]
    assert max(curve.y) == pytest.approx(100 * shown.prefix_hit_rate)
    assert list(curve.x) == sorted(curve.x)


BAD = {
    "cut.jsonl": (b'{"timestamp": 0, "input_length": 5, "outp', "line 1"),
    "empty.jsonl": (b"", "holds no requests"),
    "packed.jsonl": (b"\x1f\x8b\x08", "gunzip"),
    "other.json": (b'{"hit_curve": 3}', "not what sgtune traffic or plan"),
    "odd.json": (b'{"traffic": {"minutes": [{"minute": "x"}]}, "question": {}}', "not what sgtune traffic or plan"),
    "list.json": (b"[1, 2", "not a JSON list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_neither_is_named_with_what_is_wrong(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, message = BAD[name]
    (root / name).write_bytes(body)
    assert message in said(open_page("recorded_traffic", root, monkeypatch, traffic=name))


def test_files_elsewhere_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("/etc/passwd", "../chat.jsonl", "~/x.jsonl\x00", "gone.jsonl"):
        shown = said(open_page("recorded_traffic", root, monkeypatch, traffic=name))
        assert "the dashboard reads no other" in shown or "cannot read" in shown


def test_a_trace_too_large_for_a_page_names_the_command(root: Path) -> None:
    with (root / "large.jsonl").open("wb") as stream:
        stream.truncate(MOST_TRACE_BYTES + 1)
    with pytest.raises(InputError, match=r"sgtune traffic FILE --json > traffic\.json"):
        view_of("large.jsonl")
