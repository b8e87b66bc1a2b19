"""The fidelity ladder on the real SGLang: slices of a tiny model predict the whole, and all of it is measured."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from slices import cases_of, compare, fastest, parser, question_of, settled  # noqa: E402

from tuner.slices.run import run_slices  # noqa: E402

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900)]
BOUND = 0.4
# Two loads on three depths, and turns at the most.
TURN, MOST_REPEATS = 6, 8


def test_slices_of_two_and_four_layers_foretell_eight(tmp_path: Path) -> None:
    """Three servers side by side take turns, so that the machine's moods hit all of them, until the fastest repeats
    agree: other work only adds time. By hand: benchmarks/slices.py --cpu."""
    asked = parser().parse_args(["--cpu", "--repeats", str(MOST_REPEATS), "--decode", "32/16@1,4", "--point-s", "0.3"])
    question = question_of(asked, tmp_path)
    records = []
    with closing(run_slices(question, lambda text: None)) as points:
        for record in points:
            records.append(record)
            if len(records) % TURN == 0 and settled(records):
                break
    context = question.here.context
    assert {record["num_hidden_layers"] for record in records} == {2, 4, 8}
    assert {record["max_total_num_tokens"] for record in records} == {16384}
    cases = cases_of(records, context.arch, context)
    compared, calibrated = compare(fastest(cases), context.arch, context)
    decode = [item for item in compared if item.metric == "tpot_mean_ms"]
    assert decode
    for item in decode:
        depths = [item.seen[layers][0] for layers in (2, 4, 8)]
        assert depths == sorted(depths), "deeper models are slower, whatever else the machine does"
        assert abs(item.error) < BOUND, (item.load, item.seen, item.foretold.dummy)
    assert calibrated.width > 1.0  # and it is told that this is no GPU
