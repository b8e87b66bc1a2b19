"""What would give a table of measurements: known records with their settings taken out, and the founding table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests_data import SHIPPED

from hwprobe.errors import InputError
from models.records.points import Point, point_of, read_lines
from planner.explain.hypotheses import hypotheses, matching_gpus
from planner.explain.weigh import explain
from planner.explain.wording import explain_document

# What is taken out of a known record before it is explained.
HIDDEN = ("gpu", "tp", "attn_dp", "ep", "mtp", "mtp_steps", "launch_args", "attention_backend", "kv_dtype")
# GPU, release and lengths of sweeps whose settings are known; their records of 4 to 64 clients are explained together.
KNOWN = (
    ("H200", "0.5.5", 1024), ("H200", "0.5.6", 1024), ("H200", "0.5.7", 8192), ("H200", "0.5.12", 1024),
    ("B200", "0.5.5", 1024), ("B200", "0.5.9", 1024), ("MI300X", "0.5.8", 1024), ("MI325X", "0.5.8", 1024),
    ("MI355X", "0.5.8", 1024), ("MI355X", "0.5.2", 1024),
)  # fmt: skip


def blinded(gpu: str, version: str, isl: int) -> list[Point]:
    """The plain TP8 records of a sweep, their settings taken out; memory fraction and KV tokens too."""
    found = []
    for _, line in read_lines(SHIPPED):
        record = json.loads(line)
        asked = tuple(record.get(name) for name in ("gpu", "engine_version", "isl", "osl", "n_gpus"))
        plain = not record.get("mtp") and record.get("ep") == 1 and record["role"] == "primary"
        if asked == (gpu, version, isl, 1024, 8) and plain:
            found.append(point_of({k: v for k, v in record.items() if k not in HIDDEN}))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nine_of_ten_blinded_sweeps_name_their_gpu_and_layout() -> None:
    right = []
    for gpu, version, isl in KNOWN:
        best = explain(blinded(gpu, version, isl))[0].hypothesis
        right.append(best.gpu == gpu.lower() and best.deployment.split(",")[0] == "TP8")
    assert sum(right) >= 9


def test_a_description_matches_gpus_by_size_and_bandwidth() -> None:
    assert matching_gpus("141GB-4.8TBs (unnamed)") == ["h200", "h20-3e"]
    assert matching_gpus("H200") == ["H200"]
    assert "mi300x" in matching_gpus(None)


def test_facts_are_kept_and_only_what_is_open_is_filled_in() -> None:
    point = Point(id="a", gpu="H200", n_gpus=8, engine_version="0.5.12", tp=8, attn_dp=1, ep=1, mtp=False)
    found = list(hypotheses([point]))
    assert {(h.gpu, h.tp, h.attn_dp, h.ep, h.mtp_steps, h.reading) for h in found} == {("H200", 8, 1, 1, 0, "output")}


def test_weights_sum_to_one_and_every_record_has_a_residual() -> None:
    points = blinded("H200", "0.5.12", 1024)
    document = explain_document(explain(points))
    assert sum(each["weight"] for each in document["hypotheses"]) == pytest.approx(1.0)
    assert all(set(each["residuals"]) == {p.id for p in points} for each in document["hypotheses"])
    assert document["evidence"]


def test_a_table_without_figures_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to explain"):
        explain([Point(id="a", gpu="H200", n_gpus=8)])


def founding() -> list[Point]:
    """The founding table as it was published: no GPU, no flags, and a total that may count anything."""
    path = Path(__file__).parents[2] / "examples" / "founding_table.jsonl"
    return [point_of(json.loads(line), number) for number, line in read_lines(path)]


def test_the_founding_table_has_an_explanation_within_a_quarter() -> None:
    best = explain(founding())[0]
    assert all(abs(value) <= 25.0 for value in best.residuals.values())
