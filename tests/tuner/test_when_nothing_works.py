"""Faults 38 to 40: nothing starts, one configuration keeps failing, the sampler itself raises."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ServerConfig
from planner.plans.alternatives import UNMODELLED
from tuner.engines.simulated import SimulatedEngine, SimulatedServer
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.seam import FailureKind, LaunchFailed
from tuner.search.optuna_study import SamplerWarning
from tuner.search.space import CORE

Sgtune = Callable[..., Any]
SMALL = (
    "tune", "--hardware", "h200x8", "--isl", "100", "--osl", "50", "--concurrency", "8", "--engine", "simulated",
    "--sglang-version", "0.5.12", "--no-mtp", "--confirm", "0",
)  # fmt: skip


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sampler", ["model", "tpe"])
def test_fault_38_when_nothing_starts_the_safest_is_tried_then_a_diagnosis_ends_the_run(
    sgtune: Sgtune, tmp_path: Path, sampler: str
) -> None:
    world = tmp_path / "world.toml"
    world.write_text('name = "full"\nextra_memory_gib = 75.0\n')
    ran = sgtune(
        *SMALL, "--trials", "30", "--sampler", sampler, "--world", str(world), "--runs", str(tmp_path), "--run", "a",
        "--json",
    )  # fmt: skip
    assert ran.code == 3, ran.err
    document = json.loads(ran.out)
    assert document["best"] is None
    assert document["stopped"].startswith("nothing starts: the safest configuration failed too (oom")
    assert "other processes on the GPUs" in document["stopped"]
    assert document["launches"] < 15
    fractions = [r["config"]["mem_fraction_static"] for r in records(tmp_path) if r["failure"]]
    assert min(fractions) <= 0.7, "the most careful configuration was launched"
    assert "safest" in [record["source"] for record in records(tmp_path)]


def test_fault_38_one_launch_that_holds_ends_the_fallback(sgtune: Sgtune, tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text('name = "tight"\nextra_memory_gib = 30.0\n')
    ran = sgtune(
        *SMALL, "--trials", "7", "--sampler", "tpe", "--world", str(world), "--runs", str(tmp_path), "--run", "a",
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    sources = [(record["source"], record["outcome"]) for record in records(tmp_path)]
    assert ("safest", "measured") in sources
    assert sources.count(("safest", "measured")) == 1


def test_fault_39_what_fails_twice_is_quarantined_and_the_run_goes_on(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[ServerConfig] = []
    real = SimulatedEngine.launch

    def launch(self: SimulatedEngine, config: ServerConfig, number: int) -> SimulatedServer:
        launched.append(config)
        if config.mem_fraction_static != 0.8:
            raise LaunchFailed(FailureKind.NCCL, "NCCL error", 10.0)
        return real(self, config, number)

    monkeypatch.setattr(SimulatedEngine, "launch", launch)
    space = tmp_path / "space.toml"
    others = (*CORE[3:], *UNMODELLED)
    space.write_text(
        '[space]\nlayout = "TP8"\nmtp_steps = 0\nmem_fraction_static = ["default", 0.8]\n'
        + "".join(f'{name} = "default"\n' for name in others)
    )
    ran = sgtune(
        *SMALL, "--trials", "2", "--sampler", "random", "--space", str(space), "--runs", str(tmp_path), "--run", "a",
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert [config.mem_fraction_static == 0.8 for config in launched] == [False, False, True]
    held = [record for record in records(tmp_path) if record["reason"].startswith("quarantined: trial ")]
    assert held
    assert all(record["outcome"] == "ruled_out" for record in held)


def test_fault_40_a_sampler_that_raises_is_replaced_for_one_point_with_a_warning(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.search.model_sampler import ModelGuidedSampler

    error = np.linalg.LinAlgError("Singular matrix")
    real, calls = ModelGuidedSampler.worth_a_launch, 0

    def worth_a_launch(self: ModelGuidedSampler) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return real(self)

    monkeypatch.setattr(ModelGuidedSampler, "worth_a_launch", worth_a_launch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ran = sgtune(*SMALL, "--trials", "7", "--runs", str(tmp_path), "--run", "a", "--json")
    assert ran.code == 0, ran.err
    assert [str(w.message) for w in said if issubclass(w.category, SamplerWarning)] == [
        f"the sampler 'model' failed ({type(error).__name__}: {error}); a random proposal goes on"
    ]
    assert json.loads(ran.out)["launches"] == 7
    assert calls > 1


def test_a_mistake_of_our_own_in_the_sampler_is_not_hidden_by_a_random_proposal(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.search.model_sampler import ModelGuidedSampler

    def worth_a_launch(self: ModelGuidedSampler) -> bool:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(ModelGuidedSampler, "worth_a_launch", worth_a_launch)
    ran = sgtune(*SMALL, "--trials", "7", "--runs", str(tmp_path), "--run", "a", "--json")
    assert ran.code == 1
    assert "TypeError('unsupported operand')" in ran.err


def test_a_record_of_an_earlier_release_is_read_and_its_last_point_decides() -> None:
    old = TrialRecord(
        number=0, source="sampler", params={"layout": "TP8"}, config=ServerConfig(tp_size=8),
        outcome=TrialOutcome.MEASURED,
        predicted={"output_tok_s": 1.0}, objective=0.0, constraints={"memory": -1.0},
    )  # fmt: skip
    assert old.target is None
    assert old.unpriced == ""
    assert old.value is None
