"""predict, calibrate and validate, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_data import SHIPPED

ROOT = Path(__file__).parents[2]
ASKED = {
    "id": "a", "gpu": "H200", "n_gpus": 8, "engine_version": "0.5.12", "tp": 8, "metric_kind": "serving",
    "isl": 1024, "osl": 1024, "range_ratio": 0.8, "concurrency": 4, "mem_fraction_static": 0.82,
}  # fmt: skip
Run = Callable[..., Any]


def write(path: Path, *records: dict[str, Any] | str) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predict_answers_every_line_in_order(sgtune: Run, tmp_path: Path) -> None:
    asked = write(
        tmp_path / "in.jsonl",
        ASKED,
        "not json",
        ASKED | {"id": "c", "engine": "vllm"},
        ASKED | {"id": "d", "metric_kind": "decode_step", "concurrency": 64, "context_tokens": 2000},
        ASKED | {"id": "e", "gpu": "H2000"},
        ASKED | {"id": "f", "engine_version": "0.5.9", "isl": None},
        ASKED | {"id": "g", "launch_args": "--max-running-requests 2"},
        ASKED | {"id": "h", "gpu": "H100"},
    )
    ran = sgtune("predict", "--points", str(asked), "--out", str(tmp_path / "out.jsonl"))
    assert ran.code == 0
    found = lines(tmp_path / "out.jsonl")
    assert [answer["id"] for answer in found] == ["a", "line-2", "c", "d", "e", "f", "g", "h"]
    assert ["error" in answer for answer in found] == [False, True, True, False, True, False, False, True]
    a, _, vllm, step, unknown, between, capped, small = found
    low, high = a["band"]["tpot_mean_ms"]
    assert low < a["tpot_mean_ms"] < high
    assert a["kv_tokens"] > 450_000
    assert step["ttft_mean_ms"] is None
    assert "only sglang" in vllm["error"]
    assert "h200" in unknown["error"]
    assert any("interpolated" in said for said in between["warnings"])
    assert any("isl not given" in said for said in between["warnings"])
    assert capped["ttft_mean_ms"] > 5 * a["ttft_mean_ms"]
    assert "does not fit" in small["error"]


def test_predict_of_nothing_usable_fails(sgtune: Run, tmp_path: Path) -> None:
    asked = write(tmp_path / "in.jsonl", "x")
    assert sgtune("predict", "--points", str(asked), "--out", str(tmp_path / "out.jsonl")).code == 1
    ran = sgtune("predict", "--points", str(tmp_path / "none"), "--out", str(tmp_path / "out.jsonl"))
    assert ran.code == 2
    assert "cannot read point records" in ran.err


def test_calibrate_then_predict_is_nearer(sgtune: Run, tmp_path: Path) -> None:
    measured = ASKED | {"tpot_mean_ms": 12.5, "output_tok_s": 310.0}
    points = write(tmp_path / "m.jsonl", measured, measured | {"id": "x", "role": "outlier"})
    ran = sgtune("calibrate", "--points", str(points), "--out", str(tmp_path / "p.json"), "--json")
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    document = json.loads(ran.out)
    assert document["points"] == 1
    assert document["parameters"]["tau_us"]["determined_by_data"]
    assert not document["parameters"]["eta_w"]["determined_by_data"]
    assert "marked as an outlier" in ran.err
    tpot = {}
    for name, profile in (("before", []), ("after", ["--profile", str(tmp_path / "p.json")])):
        out = tmp_path / f"{name}.jsonl"
        assert sgtune("predict", "--points", str(points), "--out", str(out), *profile).code == 0
        tpot[name] = lines(out)[0]["tpot_mean_ms"]
    assert abs(tpot["after"] - 12.5) < 0.4 < abs(tpot["before"] - 12.5)
    shown = sgtune("validate", "--points", str(points), "--profile", str(tmp_path / "p.json"))
    assert "fitted" in shown.out


def test_a_mean_of_half_a_request_in_flight_is_learned_from(sgtune: Run, tmp_path: Path) -> None:
    points = write(tmp_path / "m.jsonl", ASKED | {"concurrency": 0.5, "num_prompts": 8, "tpot_mean_ms": 12.5})
    ran = sgtune("calibrate", "--points", str(points), "--out", str(tmp_path / "p.json"))
    assert ran.code == 0, ran.err


def test_calibrate_wants_one_version(sgtune: Run, tmp_path: Path) -> None:
    measured = ASKED | {"tpot_mean_ms": 12.5}
    points = write(tmp_path / "m.jsonl", measured, measured | {"id": "b", "engine_version": "0.5.5"})
    ran = sgtune("calibrate", "--points", str(points), "--out", str(tmp_path / "p.json"))
    assert ran.code == 2
    assert "several SGLang versions (0.5.12, 0.5.5)" in ran.err
    assert not (tmp_path / "p.json").exists()


def test_a_line_of_sglangs_benchmark_needs_a_machine(sgtune: Run, tmp_path: Path) -> None:
    record = {
        "dataset_name": "random", "max_concurrency": 4, "random_range_ratio": 0.8, "completed": 40,
        "total_input_tokens": 40 * 922, "total_output_tokens": 40 * 922, "output_throughput": 390.0,
        "mean_tpot_ms": 9.7, "mean_ttft_ms": 150.0,
    }  # fmt: skip
    points = write(tmp_path / "bench.jsonl", record)
    out = ["--out", str(tmp_path / "p.json")]
    ran = sgtune("calibrate", "--points", str(points), *out)
    assert ran.code == 2
    assert "--hardware" in ran.err
    told = ["--hardware", "h200x8", "--sglang-version", "0.5.12", "--launch-args", "--tp 8 --mem-fraction-static 0.82"]
    assert sgtune("calibrate", "--points", str(points), *out, *told).code == 0


def test_a_run_folder_teaches(sgtune: Run, tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    tuned = sgtune(
        "tune", "--hardware", "h200x8", "--isl", "1000", "--osl", "200", "--concurrency", "32", "--trials", "3",
        "--engine", "simulated", "--runs", runs, "--run", "r", "--sglang-version", "0.5.12",
    )  # fmt: skip
    assert tuned.code == 0
    ran = sgtune("calibrate", "--points", f"{runs}/r", "--out", str(tmp_path / "p.json"), "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["points"] >= 3


def test_a_run_of_another_model_is_not_taken_for_deepseek_r1(sgtune: Run, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "other"
    shutil.copytree(finished, run)
    asked = (run / "run.toml").read_text()
    (run / "run.toml").write_text(asked.replace('model = "deepseek-ai/DeepSeek-R1"', 'model = "acme/Other"'))
    assert (run / "run.toml").read_text() != asked
    ran = sgtune("calibrate", "--points", str(run), "--out", str(tmp_path / "out.json"))
    assert ran.code == 2
    assert "was measured with acme/Other" in ran.err
    assert "--model" in ran.err


def test_validate_knows_fitted_from_predicted(sgtune: Run, tmp_path: Path) -> None:
    some = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
    chosen = [r for r in some if r["id"] in ("p0108", "p0110", "p0105", "p0000")]
    chosen.append(chosen[0] | {"id": "elsewhere", "engine": "vllm"})
    ran = sgtune("validate", "--points", str(write(tmp_path / "v.jsonl", *chosen)), "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert document["outliers"] == 1
    assert [error["id"] for error in document["errors"]] == ["elsewhere"]
    by_id = {r["id"]: r for r in document["residuals"]}
    assert set(by_id) == {"p0108", "p0110", "p0000"}
    assert not by_id["p0000"]["fitted"], "a fleet is predicted, no profile is fitted to it"
    fitted = [r for r in document["residuals"] if r["id"] != "p0000"]
    assert all(r["fitted"] for r in fitted)
    assert all(abs(r["residual_percent"]) < 5 for r in fitted if r["metric"] == "tpot_median_ms")


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_shipped_profiles_are_what_the_data_give() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "fit_profiles.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "agree" in done.stdout


def test_predict_answers_slices_of_the_model(sgtune: Run, tmp_path: Path) -> None:
    step = ASKED | {"metric_kind": "decode_step", "concurrency": 64, "context_tokens": 2000}
    asked = write(
        tmp_path / "in.jsonl",
        step,
        step | {"id": "slice", "num_hidden_layers": 8},
        step | {"id": "all of it", "num_hidden_layers": 61},
        step | {"id": "dummy", "num_hidden_layers": 8, "load_format": "dummy"},
        step | {"id": "too deep", "num_hidden_layers": 62},
    )
    assert sgtune("predict", "--points", str(asked), "--out", str(tmp_path / "out.jsonl")).code == 0
    whole, slim, same, dummy, deep = lines(tmp_path / "out.jsonl")
    assert slim["tpot_mean_ms"] < 0.2 * whole["tpot_mean_ms"]
    assert slim["kv_tokens"] > 10 * whole["kv_tokens"]
    assert same["tpot_mean_ms"] == whole["tpot_mean_ms"]
    assert dummy["tpot_mean_ms"] < 0.8 * slim["tpot_mean_ms"]  # eight experts are streamed, whatever the batch
    assert "61, and a slice at least 1" in deep["error"]
