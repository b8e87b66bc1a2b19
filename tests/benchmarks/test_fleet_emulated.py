"""A prefill/decode fleet in a world as believed: what the replay says of it is what is measured behind the router."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks.fleet_emulated import CASES, measured, off, predicted
from tests.patience import in_one_of_three


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(find_spec("sglang_router") is None, reason="pip install -e '.[dev]' brings SGLang's router")
def test_output_tpot_and_ttft_are_within_a_tenth_of_the_prediction() -> None:
    case = CASES["1P1D-short"]
    output_tok_s, tpot_ms, ttft_ms = predicted(case)

    def measure() -> None:
        was = measured(case)
        assert abs(off(output_tok_s, was.output_tok_s)) < 0.1
        assert abs(off(tpot_ms, was.tpot_ms)) < 0.1
        assert abs(off(ttft_ms, was.ttft_ms, ttft_ms + was.held_ms)) < 0.1

    in_one_of_three(measure)
