"""What calibration learns of prefill/decode fleets: the transfer's rate and how fast servers of a role are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.version import Version

from models.engine.profile import ASSUMED_TRANSFER_GB_S, EngineProfile
from models.engine.versions import profile_for
from models.records.case import TRANSFER_SPEED, expected
from models.records.points import Point, point_of
from models.serving.fleet_replay import transfer_note
from planner.pool_case import record_case
from tuner.calibrate.learned import learn

BASE = profile_for(Version("0.5.8"))
DECODE = "--disaggregation-mode decode"
PREFILL = "--disaggregation-mode prefill --chunked-prefill-size 16384"


def truth(**roles: float) -> EngineProfile:
    return replace(BASE, parameters=replace(BASE.parameters, **roles))


def record(name: str, prefill: int, decode: int, clients: int, isl: int) -> Point:
    one = {"gpus_per_server": 8, "tp": 8, "attn_dp": 1, "ep": 1, "pp": 1}
    return point_of(
        {
            "id": name, "gpu": "H200", "n_gpus": 8 * (prefill + decode), "engine": "sglang", "engine_version": "0.5.8",
            "tp": 8, "attn_dp": 1, "ep": 1, "metric_kind": "serving", "isl": isl, "osl": 400, "concurrency": clients,
            "num_prompts": 4 * clients,
            "pools": [
                {"role": "prefill", "servers": prefill, "launch_args": PREFILL, **one},
                {"role": "decode", "servers": decode, "launch_args": DECODE, **one},
            ],
        }
    )  # fmt: skip


def measured(engine: EngineProfile, *, speed: bool) -> list[Point]:
    """Fleets as they would be measured where `engine` is the truth; with SGLang's transfer metric or without."""
    asked = [
        record(f"{prefill}p{decode}d-{clients}-{isl}", prefill, decode, clients, isl)
        for prefill, decode, clients, isl in (
            (1, 1, 8, 2000), (1, 1, 64, 2000), (1, 2, 64, 1000), (2, 1, 32, 8000), (1, 1, 64, 8000), (2, 2, 96, 4000),
        )
    ]  # fmt: skip
    points = []
    for point in asked:
        seen = expected(record_case(point, engine))
        extra = point.extra | ({TRANSFER_SPEED: engine.parameters.transfer_gb_s} if speed else {})
        points.append(
            replace(
                point, ttft_mean_ms=seen.ttft_mean_ms, ttft_median_ms=seen.ttft_median_ms,
                tpot_mean_ms=seen.tpot_mean_ms, output_tok_s=seen.output_tok_s, extra=extra,
            )
        )  # fmt: skip
    return points


def test_a_slow_transfer_and_slow_roles_are_learned_from_fleets() -> None:
    true = truth(transfer_gb_s=4.0, prefill_role=0.7)
    learned = learn([record_case(point, BASE) for point in measured(true, speed=True)], BASE)
    found = learned.profile.parameters
    assert found.transfer_gb_s == pytest.approx(4.0, rel=0.1)
    assert 0.6 < found.prefill_role * found.eta_pf / BASE.parameters.eta_pf < 0.85, "0.7 of the passes' rate"
    unseen = record("unseen", 1, 3, 128, 6000)
    want = expected(record_case(unseen, true))
    was = expected(record_case(unseen, BASE))
    got = expected(record_case(unseen, learned.profile))
    for figure in ("ttft_mean_ms", "output_tok_s"):
        target = want.figure(figure)
        assert target is not None
        assert got.figure(figure) == pytest.approx(target, rel=0.08)
        assert abs((was.figure(figure) or 0.0) / target - 1.0) > 0.1, "the base profile was wrong here"
    assert "4" in transfer_note(record_case(unseen, learned.profile).context)
    assert "as the profile learned it" in transfer_note(record_case(unseen, learned.profile).context)


def test_a_transfer_that_no_point_tells_stays_assumed() -> None:
    one_mixed = [replace(p, extra={}) for p in measured(BASE, speed=False)]
    mixed = [record_case(replace(p, n_gpus=8), BASE) for p in one_mixed]
    learned = learn(mixed[:3], BASE)
    assert learned.profile.parameters.transfer_gb_s == ASSUMED_TRANSFER_GB_S
    assert all(item.name != "transfer_gb_s" for item in learned.parameters)


def test_fleets_that_differ_in_prefill_servers_alone_are_told_apart() -> None:
    """One starves of prefill, the other does not: their answers are not the same."""
    true = truth(prefill_role=0.5)
    points = [record(f"{n}p", n, 1, 64, 8000) for n in (1, 3)]
    taught = []
    for point in points:
        seen = expected(record_case(point, true))
        taught.append(replace(point, ttft_mean_ms=seen.ttft_mean_ms, output_tok_s=seen.output_tok_s))
    learned = learn([record_case(point, BASE) for point in taught], BASE).profile
    rates = [expected(record_case(point, learned)).output_tok_s for point in taught]
    assert rates[1] > 1.2 * rates[0]
    assert rates == pytest.approx([point.output_tok_s for point in taught], rel=0.15)
