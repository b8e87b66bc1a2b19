"""benchmarks/slices.py: what was measured is kept, and only what is missing is measured again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "sglang_cpu")]  # behind the packages, whose names they may share

import slices  # noqa: E402

from tuner.slices.run import SliceQuestion  # noqa: E402

ASKED = (
    "--hardware h200x1 --sglang-version 0.5.17 --slices 4,5 --whole 6 --decode 128/256@1,16 --prefill 2048/16@1 "
    "--repeats 2 --python"
)


@pytest.fixture
def question(tmp_path: Path) -> SliceQuestion:
    model = str(ROOT / "models" / "configs" / "deepseek-r1.json")
    asked = slices.parser().parse_args([*ASKED.split(), sys.executable, "--model-path", model, "--", "--tp-size", "1"])
    return slices.question_of(asked, slices.logs_beside(tmp_path / "points.jsonl", "unused"))


def server(cut_after: int | None = None) -> Callable[..., Iterator[dict[str, Any]]]:
    """Return a stand-in for run_slices that is stopped after so many points."""

    def run(question: SliceQuestion, shown: object) -> Iterator[dict[str, Any]]:
        told = 0
        for arch in question.slices:
            for repeat in range(question.repeats):
                for load in question.loads:
                    if told == cut_after:
                        raise KeyboardInterrupt
                    told += 1
                    yield {
                        "id": f"slice{arch.num_hidden_layers}-{load}-0.{repeat}", "isl": load.isl, "osl": load.osl,
                        "concurrency": load.clients, "num_hidden_layers": arch.num_hidden_layers,
                    }  # fmt: skip

    return run


def test_logs_lie_beside_the_points_and_outlive_the_run(question: SliceQuestion, tmp_path: Path) -> None:
    assert question.where == tmp_path / "points.jsonl.logs"
    assert (question.where / "hardware.json").exists()
    assert slices.logs_beside(None, str(tmp_path / "away")) == tmp_path / "away"


@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_a_run_that_was_cut_measures_the_rest(
    question: SliceQuestion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    points = tmp_path / "points.jsonl"
    monkeypatch.setattr(slices, "run_slices", server(cut))
    with pytest.raises(KeyboardInterrupt):
        slices.measure_lacking(question, points, 4)
    if points.exists():
        points.write_text(points.read_text() + '{"id": "half')
    monkeypatch.setattr(slices, "run_slices", server())
    records = slices.measure_lacking(question, points)
    assert len({record["id"] for record in records}) == len(records)
    loads = {(r["num_hidden_layers"], r["isl"], r["concurrency"]) for r in records}
    assert len(loads) == 3 * 3
    of = {load: sum((r["num_hidden_layers"], r["isl"], r["concurrency"]) == load for r in records) for load in loads}
    assert all(count >= 2 for count in of.values())
    assert slices.kept_points(points) == records
    monkeypatch.setattr(slices, "run_slices", server(0))  # nothing is left to start
    assert slices.measure_lacking(question, points) == records


def test_one_depth_alone_and_depths_side_by_side(question: SliceQuestion) -> None:
    (only,) = slices.lacking(question, [], 5)
    assert [arch.num_hidden_layers for arch in only.slices] == [5]
    (together,) = slices.lacking(replace(question, together=True), [])
    assert [arch.num_hidden_layers for arch in together.slices] == [4, 5, 6]
