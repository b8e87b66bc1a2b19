"""Records of prefill/decode fleets: predicted like any other, refused with a reason where they are of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.records.points import parse_point
from planner.pool_case import record_case
from planner.sglang.flags import life_of

Sgtune = Callable[..., Any]
POOL = "python3 -m dynamo.sglang --disaggregation-transfer-backend nixl --disable-radix-cache --stream-interval 10"
RECORD = {
    "id": "fleet", "gpu": "H200", "n_gpus": 56, "engine_version": "0.5.8", "metric_kind": "serving",
    "disaggregated": True, "isl": 1024, "osl": 1024, "range_ratio": 0.8, "concurrency": 512, "mtp": False,
    "num_prompts": 2560, "tp": 8, "attn_dp": 1, "ep": 1,
    "pools": [
        {"role": "prefill", "servers": 1, "gpus_per_server": 8, "tp": 8, "attn_dp": 1, "ep": 1,
         "launch_args": f"{POOL} --disaggregation-mode prefill --max-running-requests 512"},
        {"role": "decode", "servers": 6, "gpus_per_server": 8, "tp": 8, "attn_dp": 1, "ep": 1,
         "launch_args": f"{POOL} --disaggregation-mode decode --max-running-requests 512"},
    ],
}  # fmt: skip


def answers(sgtune: Sgtune, folder: Path, *records: dict[str, Any]) -> list[dict[str, Any]]:
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sgtune("predict", "--points", str(folder / "in.jsonl"), "--out", str(folder / "out.jsonl"))
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def with_servers(prefill: int, decode: int) -> dict[str, Any]:
    pools = [dict(pool) for pool in RECORD["pools"]]  # type: ignore[attr-defined]
    pools[0]["servers"], pools[1]["servers"] = prefill, decode
    return RECORD | {"pools": pools}


def test_a_published_fleet_is_predicted_with_what_limits_it(sgtune: Sgtune, tmp_path: Path) -> None:
    """H200, SGLang 0.5.8, 1P + 6D of TP8, 512 clients at 1k/1k: 13,843 tok/s published, no point of a fleet fitted."""
    (found,) = answers(sgtune, tmp_path, RECORD)
    assert found["output_tok_s"] == pytest.approx(13_843, rel=0.1)
    assert found["limit"] in ("prefill", "decode", "transfer", "kv", "cap")
    assert any("KV transfer" in warning for warning in found["warnings"])
    assert not [warning for warning in found["warnings"] if "belongs to no flag" in warning]
    low, high = found["band"]["output_tok_s"]
    assert low < 13_843 < high


def test_more_prefill_servers_shorten_the_wait_and_more_decode_servers_the_token(
    sgtune: Sgtune, tmp_path: Path
) -> None:
    crowd = {"concurrency": 2048, "num_prompts": 6144}
    few, more_prefill, more_decode = answers(
        sgtune, tmp_path, *(with_servers(*n) | crowd for n in ((1, 6), (2, 6), (2, 12)))
    )
    assert few["limit"] == "prefill"
    assert more_prefill["ttft_median_ms"] < 0.5 * few["ttft_median_ms"]
    assert more_decode["tpot_mean_ms"] < more_prefill["tpot_mean_ms"]


@pytest.mark.parametrize(
    ("pools", "complaint"),
    [
        ([{"role": "prefill", "servers": 1, "gpus_per_server": 8}], "one pool of prefill and one of decode"),
        ([{"role": "mixed", "servers": 2, "gpus_per_server": 8}], "roles mixed"),
        ([{"role": "prefill", "servers": 0, "gpus_per_server": 8}], "servers"),
        ("prefill", "pools"),
    ],
)
def test_pools_of_another_kind_are_refused_with_the_reason(
    sgtune: Sgtune, tmp_path: Path, pools: Any, complaint: str
) -> None:
    (found,) = answers(sgtune, tmp_path, RECORD | {"pools": pools})
    assert complaint in found["error"]


def test_a_record_without_a_release_has_the_newest_that_knows_its_flags() -> None:
    pools = [dict(pool) for pool in RECORD["pools"]]  # type: ignore[attr-defined]
    for pool in pools:
        pool["launch_args"] += " --enable-deepep-moe"
    point = parse_point(json.dumps(RECORD | {"pools": pools, "engine_version": None}), 1)
    assert str(record_case(point).context.version) == life_of("--enable-deepep-moe")[1]  # type: ignore[index]
    assert record_case(point).config.moe_a2a_backend == "deepep"


def test_a_profile_learned_from_a_fleet_is_that_of_both_roles() -> None:
    case = record_case(parse_point(json.dumps(RECORD), 1))
    slower = replace(case.context.engine.parameters, eta_pf=0.5 * case.context.engine.parameters.eta_pf)
    changed = case.with_parameters(slower)
    assert changed.prefill is not None
    assert changed.prefill.context.engine.parameters == changed.context.engine.parameters == slower
