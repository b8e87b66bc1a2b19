"""A trace on the emulated server with its radix cache goes as predicted: TTFT and output within 5 %, hits equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.traffic_as_predicted import TOLERANCE, on_the_emulated_server, on_the_real_server
from tests.patience import in_one_of_three


@pytest.mark.slow
@pytest.mark.alone
def test_the_emulated_server_under_a_trace_does_what_was_predicted(tmp_path: Path) -> None:
    def attempt() -> None:
        served = on_the_emulated_server(tmp_path, requests=14, apart_ms=700)
        assert (served.measured["requests"], served.measured["errors"]) == (14, 0)
        assert served.measured["hits_as_expected"] == 14
        assert served.measured["cached_tokens"] == 13 * 6 * 512
        off = {name: served.off(name) for name in served.pairs}
        assert all(abs(error) <= TOLERANCE for error in off.values()), off

    in_one_of_three(attempt)


@pytest.mark.deep
@pytest.mark.alone
def test_the_real_sglang_hits_exactly_the_tokens_that_were_predicted(tmp_path: Path) -> None:
    served = on_the_real_server(tmp_path)
    assert (served.measured["errors"], served.measured["hits_as_expected"]) == (0, served.measured["requests"])
    assert served.off("cached tokens") == 0.0
