"""What is served: plan, tune and export name the checkpoint that was asked for, with the flags it needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from planner.inputs import path_to_serve, read_model
from planner.launch_lines.read import launch_of_file

FP4 = ("--model", "DeepSeek-R1-0528-FP4-v2", "--hardware", "b200x4", "--sglang-version", "0.5.12")
LOAD = ("--isl", "200", "--osl", "50", "--concurrency", "8")


def flag_of(words: Any, name: str) -> str:
    listed = list(words)
    return str(listed[listed.index(name) + 1])


def test_an_exported_plan_serves_its_checkpoint(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert sgtune("plan", *FP4, *LOAD, "--out", str(plan)).code == 0
    assert json.loads(plan.read_text())["question"]["model_path"] == "nvidia/DeepSeek-R1-0528-FP4-v2"
    assert sgtune("export", "--plan", str(plan), "--out", str(tmp_path), "--target", "bash").code == 0
    words = launch_of_file(next(tmp_path.glob("*.sh"))).words
    assert flag_of(words, "--model-path") == "nvidia/DeepSeek-R1-0528-FP4-v2"
    assert flag_of(words, "--quantization") == "modelopt_fp4"


def test_a_tuned_run_and_its_export_serve_their_checkpoint(sgtune: Callable[..., Any], tmp_path: Path) -> None:
    model = ("--model", "moonshotai/Kimi-K2-Thinking", "--hardware", "h200x8", "--sglang-version", "0.5.9")
    run = ("--engine", "simulated", "--trials", "1", "--confirm", "0", "--runs", str(tmp_path), "--run", "a")
    ran = sgtune("tune", *model, *LOAD, *run, "--sampler", "tpe", "--json")
    assert ran.code == 0, ran.err
    assert flag_of(json.loads(ran.out)["best"]["argv"], "--model-path") == "moonshotai/Kimi-K2-Thinking"
    assert "--model-path moonshotai/Kimi-K2-Thinking" in (tmp_path / "a/trials/0/command.sh").read_text()
    export = ("export", "--runs", str(tmp_path), "--run", "a", "--out", str(tmp_path / "x"), "--target", "bash")
    assert sgtune(*export).code == 0
    words = launch_of_file(next((tmp_path / "x").glob("*.sh"))).words
    assert flag_of(words, "--model-path") == "moonshotai/Kimi-K2-Thinking"
    assert "--reasoning-parser" not in words, "R1's parser would take all of its answer for reasoning"


def test_what_is_served_follows_from_what_was_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert path_to_serve(None, None) == "deepseek-ai/DeepSeek-R1"
    assert path_to_serve("kimi-k2-instruct", None) == "moonshotai/Kimi-K2-Instruct"
    assert path_to_serve(tmp_path, None) == path_to_serve(tmp_path / "config.json", None) == str(tmp_path)
    assert path_to_serve(tmp_path, "/models/mine") == "/models/mine"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "distilled from R1"),
        ("Qwen/Qwen3-235B-A22B", "names no DeepSeek-R1"),
        ("unsloth/DeepSeek-R1-GGUF", "GGUF"),
        ("cognitivecomputations/DeepSeek-R1-AWK", "did you mean cognitivecomputations/DeepSeek-R1-AWQ"),
    ],
)
def test_what_is_not_planned_is_named(sgtune: Callable[..., Any], model: str, reason: str) -> None:
    ran = sgtune("plan", "--model", model, "--hardware", "h200x8", *LOAD)
    assert ran.code == 2
    assert reason in ran.err


def test_nvidias_file_stands_for_the_config_beside_it(tmp_path: Path) -> None:
    quantization = {"quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["*self_attn*"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantization))
    with pytest.raises(InputError, match=r"put config\.json beside it"):
        read_model(tmp_path / "hf_quant_config.json")
    r1 = json.loads((Path(__file__).parents[2] / "models/configs/deepseek-r1.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in r1.items() if k != "quantization_config"}))
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "hf_quant_config.json"):
        assert read_model(path).weights == "NVFP4"
