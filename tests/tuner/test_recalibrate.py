"""After a run: the calibrated profile, what it says, and that a plan can be made with it; before one: the dry run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.engine.profile import load_engine_profile

Sgtune = Callable[..., Any]
QUESTION = ("--hardware", "h200x8", "--isl", "200", "--osl", "200", "--sglang-version", "0.5.12")
SMALL = ("tune", *QUESTION, "--concurrency", "16", "--engine", "simulated")


def test_a_run_leaves_a_profile_that_knows_the_machine_and_its_acceptance(sgtune: Sgtune, tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text('name = "slow"\nnoise = 0.01\nacceptance = 0.5\n[parameters]\neta_w = 0.8\ntau_us = 1.3\n')
    ran = sgtune(
        *SMALL, "--trials", "4", "--confirm", "0", "--world", str(world), "--runs", str(tmp_path), "--run", "a",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "calibrated: " in ran.out
    assert "plan again with --profile" in ran.out
    assert "best trade-offs of all loads measured" in ran.out
    assert "left at most" in ran.err + ran.out, "how long the rest takes, by what launches took"
    document = json.loads((tmp_path / "a" / "result.json").read_text())
    found = document["calibrated"]
    assert abs(found["mtp_acceptance"] - 0.5) < 0.1, "the belief was 0.7"
    profile = load_engine_profile(tmp_path / "a" / "profile.json")
    assert profile.status == "calibrated"
    asked = ("plan", *QUESTION, "--concurrency", "16", "--no-mtp", "--json")
    before = json.loads(sgtune(*asked).out)["candidates"]
    after = json.loads(sgtune(*asked, "--profile", found["profile"]).out)["candidates"]
    baseline = document["baseline"]["output_tok_s"]
    plain, calibrated = (
        next(c["prediction"]["output_tok_s"] for c in found if c["label"] == "TP8") for found in (before, after)
    )
    assert abs(calibrated / baseline - 1) < abs(plain / baseline - 1), "the plan is nearer to what was measured"


def test_a_dry_run_tells_launches_hours_moves_and_what_was_ruled_out(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(*SMALL, "--runs", str(tmp_path / "runs"), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["first"][0]["source"] == "SGLang default"
    assert document["first"][0]["loads"][-1] == 16
    assert document["candidates"] > 1000
    assert 0 < document["hours"] < (document["launches"] + document["confirmations"]) * 1.0
    assert "pp-with-mtp" in document["ruled_out_by_reason"]
    assert document["moves"]["disable_radix_cache"] == [True]
    short = json.loads(sgtune(*SMALL, "--runs", str(tmp_path), "--dry-run", "--json", "--budget", "20m").out)
    assert short["hours"] < document["hours"]
    assert not (tmp_path / "runs").exists()
