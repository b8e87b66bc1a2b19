"""What a launch is expected to be worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.search.expected_improvement import chance_below, expected_improvement

AHEAD = st.floats(-1.0, 1.0)
DEVIATION = st.floats(1e-3, 1.0)


@given(AHEAD, AHEAD, DEVIATION, DEVIATION)
def test_worth_grows_with_what_is_expected_and_with_what_is_not_known(
    ahead: float, further: float, deviation: float, wider: float
) -> None:
    worth = expected_improvement(
        np.array([ahead, max(ahead, further), ahead]), np.array([deviation, deviation, max(deviation, wider)])
    )
    assert worth[0] >= max(0.0, ahead) - 1e-12
    assert worth[1] >= worth[0] - 1e-12
    assert worth[2] >= worth[0] - 1e-12


def test_it_is_the_mean_of_what_exceeds_the_best() -> None:
    drawn = np.random.default_rng(0).normal(-0.1, 0.2, 400_000)
    assert expected_improvement(np.array([-0.1]), np.array([0.2]))[0] == pytest.approx(
        float(np.maximum(drawn, 0.0).mean()), rel=0.02
    )
    assert chance_below(np.array([[0.5]]))[0, 0] == pytest.approx(float((drawn < 0.0).mean()), abs=0.005)
