"""Slices before full launches: what is learned from them, what is promoted, and what a crash costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.engines.build import world_toml
from tuner.engines.world import Effect, World
from tuner.slices.screening import SLICED

Sgtune = Callable[..., Any]
QUESTION = (
    "tune", "--hardware", "h200x8", "--isl", "500", "--osl", "200", "--concurrency", "64", "--engine", "simulated",
    "--sglang-version", "0.5.12", "--confirm", "0",
)  # fmt: skip
# Attention DP, which the model recommends here, is slow in this world, on slices as on the whole.
SLOW_DP = Effect(when={"attn_dp_size": 8}, time_factor=1.6)


def tuned(sgtune: Sgtune, folder: Path, name: str, *more: str, effects: tuple[Effect, ...] = (SLOW_DP,)) -> Any:
    world = folder / "world.toml"
    world.write_text(world_toml(World(name="slow dp", effects=effects, noise=0.01)))
    return sgtune(*QUESTION, "--world", str(world), "--runs", str(folder), "--run", name, "--json", *more)


def sources(folder: Path, name: str) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in (folder / name / "trials.jsonl").read_text().splitlines()]
    return [(record["source"], record["params"]["layout"]) for record in records]


@pytest.mark.slow
def test_a_slice_warns_of_what_the_model_would_have_launched(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = tuned(sgtune, tmp_path, "a", "--fidelity", "slice", "--trials", "3")
    assert ran.code == 0, ran.err
    launched = sources(tmp_path, "a")
    assert launched[0][0] == "SGLang default"
    assert {source for source, _ in launched[1:]} <= {SLICED, "sampler"}
    slices = [json.loads(line) for line in (tmp_path / "a" / "slices.jsonl").read_text().splitlines()]
    assert slices
    assert all(line["figures"]["output_tok_s"] > 0 for line in slices)
    assert "slice 1 " in ran.err
    # as much is known after three launches as without slices after more, and a run says what was asked of it
    best = json.loads(ran.out)["best"]["measured"]["output_tok_s"]
    plain = json.loads(tuned(sgtune, tmp_path, "b", "--trials", "3").out)["best"]["measured"]["output_tok_s"]
    assert best > 0.97 * plain
    refused = tuned(sgtune, tmp_path, "a", "--trials", "4", "--resume")
    assert refused.code == 2
    assert "fidelity slice -> whole" in refused.err


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(sgtune: Sgtune, tmp_path: Path) -> None:
    options = ("--fidelity", "slice", "--trials", "3")
    assert tuned(sgtune, tmp_path, "a", *options).code == 0
    assert tuned(sgtune, tmp_path, "b", *options).code == 0
    for name, keep in (("trials.jsonl", 1), ("slices.jsonl", 2)):
        file = tmp_path / "b" / name
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:keep]) + lines[keep][:20])  # the power went in the middle of a line
    (tmp_path / "b" / "trials.head").unlink()
    assert tuned(sgtune, tmp_path, "b", *options, "--resume").code == 0
    for name in ("trials.jsonl", "slices.jsonl"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_the_dry_run_says_what_slices_cost_and_save(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*QUESTION, "--fidelity", "slice", "--trials", "4", "--dry-run", "--runs", str(tmp_path))
    assert ran.code == 0
    assert "up to 9 configurations are tried on 8 of 61 layers" in ran.out
    assert "0.9 h more" in ran.out
    assert "slices" not in sgtune(*QUESTION, "--trials", "4", "--dry-run", "--runs", str(tmp_path)).out


def test_what_slices_cannot_rank_is_refused(sgtune: Sgtune, tmp_path: Path) -> None:
    small = Path(__file__).parents[1] / "data" / "small_model.json"
    ran = sgtune(*QUESTION, "--fidelity", "slice", "--model", str(small), "--runs", str(tmp_path), "--trials", "2")
    assert ran.code == 2
    question = [word for word in QUESTION if word not in ("--concurrency", "64")]
    ran = sgtune(*question, "--fidelity", "slice", "--objective", "users", "--min-user-tok-s", "20", "--runs",
                 str(tmp_path))  # fmt: skip
    assert ran.code == 2
    assert "--fidelity slice ranks" in ran.err
