"""`tune --servers`: whole deployments in virtual time: roles alone first, few whole launches, the right one wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.fleets.deployment import Deployment
from tuner.evidence.trial_lines import read_trials

Sgtune = Callable[..., Any]
LOAD = ("--hardware", "3xh200x8", "--isl", "2000", "--osl", "200", "--concurrency", "96", "--no-mtp")


def tuned(sgtune: Sgtune, runs: Path, world: str, *more: str, servers: str = "any", run: str = "r") -> Any:
    file = runs / f"{run}.toml"
    file.write_text(f'name = "{run}"\nnoise = 0.01\n{world}')
    named = ("--world", str(file), "--servers", servers, "--runs", str(runs), "--run", run)
    ran = sgtune("tune", *LOAD, "--engine", "simulated", *named, "--json", *more)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def off(trial: dict[str, Any]) -> float:
    return abs(trial["measured_output_tok_s"] / trial["predicted_output_tok_s"] - 1.0)


def test_roles_are_measured_alone_and_the_fleets_of_them_come_out_as_predicted(sgtune: Sgtune, tmp_path: Path) -> None:
    document = tuned(sgtune, tmp_path, "[parameters]\nprefill_role = 0.7\ndecode_role = 1.2\n", "--confirm", "0")
    rates = {rate["role"]: rate["over_predicted"] for rate in document["rates"]}
    assert rates["prefill"] == pytest.approx(0.7, rel=0.05)
    assert rates["decode"] == pytest.approx(1.2, rel=0.05)
    apart = [trial for trial in document["trials"] if "P " in trial["label"]]
    assert apart
    assert document["launches"] <= 6
    assert all(off(trial) < 0.1 for trial in apart)
    assert document["baseline"]["source"] == "copies"
    servers = [server["name"] for server in document["best"]["measured"]["servers"]]
    assert len(servers) == sum(pool["servers"] for pool in document["best"]["deployment"]["pools"])
    assert document["simulated"]


def test_where_decode_servers_are_slow_alone_no_fleet_of_them_is_launched(sgtune: Sgtune, tmp_path: Path) -> None:
    document = tuned(sgtune, tmp_path, "[parameters]\ndecode_role = 0.7\n", "--confirm", "0")
    assert document["best"]["deployment"]["pools"][0]["role"] == "mixed"
    assert len(document["rates"]) == 2
    assert not [trial for trial in document["trials"] if "P " in trial["label"]]


def test_a_slow_transfer_is_learned_from_the_first_fleet(sgtune: Sgtune, tmp_path: Path) -> None:
    document = tuned(sgtune, tmp_path, "[parameters]\ntransfer_gb_s = 0.01\n", "--confirm", "0")
    assert document["learned"]["transfer_gb_s"] == pytest.approx(0.25, rel=0.1)
    apart = [trial for trial in document["trials"] if "P " in trial["label"]]
    assert all(off(trial) < 0.05 for trial in apart[1:])


def test_with_pd_alone_copies_are_the_baseline_and_no_answer(sgtune: Sgtune, tmp_path: Path) -> None:
    document = tuned(sgtune, tmp_path, "", "--confirm", "1", servers="pd")
    assert document["best"]["deployment"]["pools"][0]["role"] == "prefill"
    assert document["baseline"]["deployment"]["pools"][0]["role"] == "mixed"
    mixed = tuned(sgtune, tmp_path, "", servers="mixed", run="m")
    assert mixed["rates"] == []
    assert {pool["role"] for pool in mixed["best"]["deployment"]["pools"]} == {"mixed"}


def test_a_resumed_run_is_the_undisturbed_one(sgtune: Sgtune, tmp_path: Path) -> None:
    tuned(sgtune, tmp_path, "", "--confirm", "0", "--trials", "4", run="whole")
    (tmp_path / "again").mkdir()
    tuned(sgtune, tmp_path / "again", "", "--confirm", "0", "--trials", "2", run="whole")
    tuned(sgtune, tmp_path / "again", "", "--confirm", "0", "--trials", "4", "--resume", run="whole")
    first, second = (tmp_path / place / "whole/trials.jsonl" for place in (".", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert all(isinstance(record.deployment, Deployment) for record in read_trials(first))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--objective", "tpot"), "leave --objective tpot out"),
        (("--parallel", "2"), "leave --parallel 2 out"),
        (("--fidelity", "slice"), "leave --fidelity slice out"),
        (("--engine", "docker", "--image", "x"), "not in containers"),
        (("--engine", "local", "--python", "sh"), "starts all servers on this machine"),
        (("--hardware", "h200x8", "--servers", "pd"), "has it for one"),
    ],
)
def test_what_has_no_meaning_is_refused(sgtune: Sgtune, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    asked = ("tune", *LOAD, "--engine", "simulated", "--servers", "any", "--runs", str(tmp_path), *more)
    ran = sgtune(*asked)
    assert ran.code == 2
    assert message in ran.err


def test_a_dry_run_names_the_first_launches(sgtune: Sgtune, tmp_path: Path) -> None:
    asked = ("tune", *LOAD, "--engine", "simulated", "--servers", "any", "--runs", str(tmp_path), "--dry-run")
    document = json.loads(sgtune(*asked, "--json").out)
    assert document["launches"] == 6
    assert document["first"][0]["source"] == "copies"
    assert len(document["alone"]) == 2
    assert "best predicted" in sgtune(*asked).out
    assert list(tmp_path.iterdir()) == []
