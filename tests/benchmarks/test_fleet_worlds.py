"""The table of benchmarks/fleet_worlds.py, on three nodes: the right deployment within six whole launches."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/fleet_worlds.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fleet_worlds", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fleet_worlds"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "parameters", "prefill_servers"),
    [
        ((1000, 1000, 256), {"prefill_role": 1.3}, 1),
        ((4000, 256, 96), {"decode_role": 1.3}, 2),
        ((4000, 256, 96), {"decode_role": 0.6}, 0),
    ],
)
def test_the_right_deployment_is_found_and_fleets_are_as_predicted(
    script: ModuleType,
    tmp_path: Path,
    lengths: tuple[int, int, int],
    parameters: dict[str, float],
    prefill_servers: int,
) -> None:
    posed = script.posed_in("w", *lengths, parameters=parameters)
    score = script.score_of(posed, hardware="3xh200x8", seed=1, folder=tmp_path)
    assert score.ratio > 0.98
    assert score.launches <= 6
    assert score.off < 0.1
    begins = f"{prefill_servers}P " if prefill_servers else "3 x "
    assert score.right.startswith(begins), "the worlds are apart"
    assert score.chosen.startswith(begins)
