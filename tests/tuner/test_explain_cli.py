"""`sgtune explain` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documents import document_of

RECORD = {
    "id": "one", "gpu": None, "n_gpus": 8, "engine_version": "0.5.12", "tp": 8, "attn_dp": 1, "ep": 1, "mtp": False,
    "metric_kind": "serving", "isl": 1024, "osl": 1024, "range_ratio": 0.8, "concurrency": 4, "num_prompts": 40,
    "tpot_mean_ms": 9.7, "ttft_mean_ms": 157.8, "output_tok_s": 393.4, "mem_fraction_static": 0.82,
}  # fmt: skip


def test_the_json_document_keeps_its_schema_and_the_table_says_why(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps(RECORD) + "\n")
    ran = sgtune("explain", str(table), "--json")
    assert ran.code == 0, ran.err
    document = document_of("explain", ran.out)
    assert set(document["hypotheses"][0]["residuals"]) == {"one"}
    shown = sgtune("explain", str(table))
    assert "likeliest first" in shown.out
    assert "\n- " in shown.out


def test_a_table_without_figures_is_an_error_that_says_so(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text('{"id": "a", "gpu": "H200", "n_gpus": 8}\n')
    ran = sgtune("explain", str(table))
    assert ran.code == 2
    assert "nothing to explain" in ran.err
