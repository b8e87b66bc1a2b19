"""Point records as they are written: complete, odd, broken, and SGLang's own benchmark lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_data import SHIPPED

from hwprobe.errors import InputError
from models.records.points import parse_point, read_lines


def test_the_published_points_are_read() -> None:
    points = [parse_point(line, number) for number, line in read_lines(SHIPPED)]
    assert len(points) == 629
    assert len({point.id for point in points}) == 629
    assert all(point.extra["url"].startswith("http") for point in points), "every figure names its source"


def test_unknown_fields_are_kept_and_odd_numbers_understood() -> None:
    point = parse_point(
        '{"id": 7, "gpu": "H200", "n_gpus": 8, "request_rate": "inf", "accept_length": "2.5-3", "colour": "red"}', 1
    )
    assert (point.id, point.request_rate, point.accept_length) == ("7", None, 2.75)
    assert point.extra == {"colour": "red"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 3: not a JSON object"),
        ("[1]", "line 3: not a JSON object"),
        ('{"gpu": "H200", "n_gpus": "eight"}', "n_gpus is 'eight', which is not a number"),
        ('{"gpu": "H200", "isl": -5}', "isl is -5; it cannot be negative"),
        ('{"gpu": "H200", "isl": true}', "isl is True, which is not a number"),
    ],
)
def test_what_is_wrong_is_named(line: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_point(line, 3)


def test_a_line_of_sglangs_benchmark() -> None:
    record = {
        "backend": "sglang", "dataset_name": "random", "request_rate": float("inf"), "max_concurrency": 16,
        "random_input_len": 1000, "random_output_len": 1000, "random_range_ratio": 0.5, "completed": 160,
        "total_input_tokens": 160 * 750, "total_output_tokens": 160 * 720, "output_throughput": 880.5,
        "mean_ttft_ms": 150.0, "median_ttft_ms": 120.0, "mean_tpot_ms": 17.5, "median_tpot_ms": 17.4,
    }  # fmt: skip
    point = parse_point(json.dumps(record), 1)
    assert (point.concurrency, point.num_prompts, point.request_rate) == (16, 160, None)
    assert (point.isl, point.osl, point.range_ratio) == (1000, 960, 0.5)
    assert point.measured["tpot_median_ms"] == 17.4
    assert point.gpu == ""


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=80), st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.floats())))
def test_any_line_is_a_point_or_a_clear_error(content: str | dict[str, object]) -> None:
    line = content if isinstance(content, str) else json.dumps(content)
    try:
        parse_point(line, 1)
    except InputError as error:
        said = str(error)
    else:
        said = "line 1: fine"
    assert said.startswith("line 1: ")
