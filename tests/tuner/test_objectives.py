"""What a run may be asked to improve: users at a speed, goodput at a rate, tokens per GPU and per cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprobe.errors import SgtuneError
from models.workload import Slo, Workload
from tuner.bench.point import Settings, measure_for_tuner
from tuner.choices import Arrival
from tuner.engines.build import world_toml
from tuner.engines.world import World
from tuner.seam import Measurement
from tuner.search.objective import crossing, users_within_slo

Sgtune = Callable[..., Any]
SMALL = ("tune", "--hardware", "h200x8", "--isl", "300", "--osl", "150", "--sglang-version", "0.5.12",
         "--engine", "simulated")  # fmt: skip


def point(clients: int, tpot_ms: float) -> Measurement:
    by = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), tpot_ms)
    return Measurement(
        concurrency=clients, achieved_in_flight=clients, output_tok_s=1.0, output_tok_s_interval=(1.0, 1.0),
        ttft_ms=by, tpot_ms=by, e2e_ms=by, duration_s=1.0,
    )  # fmt: skip


def test_users_are_where_the_measured_curve_crosses_the_limit() -> None:
    limit = (Slo.parse("tpot:mean<20ms"),)
    between = users_within_slo([point(16, 10.0), point(64, 40.0)], limit)
    assert between == pytest.approx(32.0), "log-linear between a point that keeps the limit and one that does not"
    assert users_within_slo([point(16, 10.0), point(32, 15.0)], limit) == 32.0, (
        "beyond the last point nothing is claimed"
    )
    assert 0 < users_within_slo([point(16, 30.0)], limit) < 16.0
    assert users_within_slo([], limit) == 0.0
    assert crossing(np.log([1.0, 4.0]), np.array([[-1.0, 1.0], [-1.0, -0.5], [0.5, 1.0]])) == pytest.approx(
        [math.log(2.0), math.log(4.0), -1.0]
    )


def test_most_users_at_a_speed_are_bracketed_on_one_server(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(
        *SMALL, "--objective", "users", "--min-user-tok-s", "60", "--users", "60", "--no-mtp", "--trials", "3",
        "--confirm", "0", "--runs", str(tmp_path), "--run", "a", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    best = document["best"]
    assert document["unit"] == "users"
    assert best["measured"]["tpot_ms"]["mean"] <= 1e3 / 60, "the deciding point keeps the speed"
    assert best["value"] >= document["baseline"]["value"]
    low, high = best["value_interval"]
    assert low <= best["value"] <= high
    lines = [json.loads(line) for line in (tmp_path / "a" / "trials.jsonl").read_text().splitlines()]
    winner = next(line for line in lines if line["number"] == best["number"])
    loads = [point["concurrency"] for point in winner["points"]]
    assert loads == sorted(loads)
    kept = [p["concurrency"] for p in winner["points"] if p["tpot_ms"]["mean"] <= 1e3 / 60]
    assert max(kept) <= winner["value"] <= min([c for c in loads if c > max(kept)], default=max(kept))
    assert all(math.exp(line["objective"]) == pytest.approx(line["value"]) for line in lines if line["value"])


def test_goodput_counts_what_keeps_every_limit_at_a_rate(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune(
        *SMALL, "--objective", "goodput", "--request-rate", "12", "--slo", "ttft:p99<1s", "--slo", "tpot:mean<25ms",
        "--trials", "3", "--confirm", "0", "--no-mtp", "--runs", str(tmp_path), "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    best = document["best"]
    assert best["measured"]["request_rate"] == 12.0
    assert 0 < best["value"] <= 12.0 * 1.15, "no more than came, but for the draw of arrivals"
    assert best["value"] >= document["baseline"]["value"]
    assert {point["request_rate"] for point in document["pareto"]} <= {3.0, 6.0, 12.0}


def test_a_rate_per_gpu_and_per_cost_is_the_rate_in_another_unit(sgtune: Sgtune, tmp_path: Path) -> None:
    common = (*SMALL, "--concurrency", "16", "--trials", "1", "--confirm", "0", "--runs", str(tmp_path), "--json")
    plain, per_gpu, per_cost = (
        json.loads(sgtune(*common, "--run", name, *more).out)
        for name, more in (
            ("a", ()),
            ("b", ("--objective", "output_tok_s_per_gpu")),
            ("c", ("--objective", "output_tok_s_per_cost", "--cost-per-gpu-hour", "2.5")),
        )
    )
    assert per_gpu["best"]["config"] == plain["best"]["config"] == per_cost["best"]["config"]
    assert per_gpu["best"]["value"] == pytest.approx(plain["best"]["value"] / 8)
    assert per_cost["best"]["value"] == pytest.approx(plain["best"]["value"] * 3600 / (8 * 2.5))
    front = plain["pareto"]
    assert [p["output_tok_s_per_gpu"] for p in front] == sorted(
        (p["output_tok_s_per_gpu"] for p in front), reverse=True
    )
    assert [p["user_tok_s"] for p in front] == sorted(p["user_tok_s"] for p in front)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--objective", "users"), "needs --min-user-tok-s"),
        (("--objective", "users", "--min-user-tok-s", "-1"), "it must be from 0.001 to 100,000 tok/s"),
        (("--objective", "users", "--min-user-tok-s", "30", "--concurrency", "4"), "--concurrency does not go with"),
        (("--objective", "goodput", "--slo", "tpot:mean<1s"), "needs --request-rate"),
        (("--objective", "goodput", "--request-rate", "2"), "give at least one"),
        (("--request-rate", "2"), "belongs to --objective goodput"),
        (("--concurrency", "4", "--min-user-tok-s", "2"), "belongs to --objective users"),
        (("--concurrency", "4", "--objective", "output_tok_s_per_cost"), "needs --cost-per-gpu-hour"),
        ((), "needs --concurrency"),
    ],
)
def test_an_objective_says_what_it_needs(sgtune: Sgtune, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    runs = tmp_path / "runs"
    ran = sgtune(*SMALL, "--runs", str(runs), *more)
    assert ran.code == 2
    assert said in ran.err
    assert not runs.exists()


def test_users_are_counted_on_a_live_server_too(sgtune: Sgtune, tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text(world_toml(World(name="test", boot_s=0.3, noise=0.0)))
    ran = sgtune(
        "tune", "--hardware", "h200x8", "--sglang-version", "0.5.12", "--isl", "32", "--osl", "8", "--objective",
        "users", "--min-user-tok-s", "5", "--users", "2", "--engine", "emulated", "--world", str(file), "--trials",
        "1", "--confirm", "0", "--point-time", "0.2s", "--no-mtp", "--runs", str(tmp_path), "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    best = json.loads(ran.out)["best"]
    assert best["value"] == pytest.approx(2.0)
    assert best["measured"]["concurrency"] == 2, "both that were asked for are carried"


def test_a_live_open_loop_is_asked_for_its_rate_its_limits_and_a_window_of_several_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def measure_point(url: str, workload: Workload, **more: Any) -> Any:
        seen.update(more, url=url)
        raise SgtuneError("enough")

    monkeypatch.setattr("tuner.bench.point.measure_point", measure_point)
    limits = (Slo.parse("ttft:p99<1s"),)
    measure = measure_for_tuner(0, Settings(least_s=1.0, slos=limits))
    workload = replace(Workload.checked(100, 100, 40), request_rate=4.0)
    with pytest.raises(SgtuneError, match="enough"):
        measure("http://127.0.0.1:1", workload, lambda: None)
    chosen = seen["settings"]
    assert (chosen.arrival, chosen.request_rate, chosen.slos) == (Arrival.POISSON, 4.0, limits)
    assert chosen.least_s == pytest.approx(50.0), "by Little's law a request lives ten seconds here"
    assert chosen.most_s >= chosen.least_s * 3
