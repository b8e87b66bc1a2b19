"""What a launch line serves is read from what it says, and what is not modelled gets no verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError, UnsupportedModel
from models.architecture import deepseek_r1, load_architecture, parse_architecture
from models.records.points import point_of
from planner.launch_lines.checkpoint import served_model
from planner.pool_case import record_case

R1_CONFIG = json.loads((Path(__file__).parents[2] / "models/configs/deepseek-r1.json").read_text())


def config_with(quantization: dict[str, Any] | None) -> bytes:
    config = {key: value for key, value in R1_CONFIG.items() if key != "quantization_config"}
    return json.dumps(config | ({"quantization_config": quantization} if quantization else {})).encode()


@pytest.mark.parametrize(
    ("path", "weights"),
    [
        ("deepseek-ai/DeepSeek-R1", "FP8"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "FP8"),
        ("tngtech/DeepSeek-TNG-R1T2-Chimera", "FP8"),
        ("/models/deepseek_r1_0528", "FP8"),
        ("/hub/models--deepseek-ai--DeepSeek-R1/snapshots/56d4cbbb4d29f4355bab4b9a39ccb717a14ad5ad", "FP8"),
        ("unsloth/DeepSeek-R1-BF16", "BF16"),
        ("/mnt/DeepSeek-V3-0324-bf16/", "BF16"),
        ("perplexity-ai/r1-1776", "BF16"),
        ("meituan/DeepSeek-R1-Channel-INT8", "INT8"),
        ("/models/DeepSeek-R1-Block-INT8", "INT8"),
        ("/opt/models/ring/DeepSeek-R1", "FP8"),
        ("cognitivecomputations/DeepSeek-R1-AWQ", "4-bit AWQ"),
        ("/models/DeepSeek-V3-0324-AWQ", "4-bit AWQ"),
        ("OPEA/DeepSeek-R1-int4-gptq-sym-inc", "4-bit GPTQ"),
        ("novita/Deepseek-R1-0528-W4AFP8", "W4AFP8"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "NVFP4"),
        ("/models/DeepSeek-R1-NVFP4", "NVFP4"),
        ("amd/DeepSeek-R1-MXFP4-Preview", "MXFP4"),
        ("/data/DeepSeek-V3.2", "FP8"),
        ("moonshotai/Kimi-K2-Instruct-0905", "FP8"),
        ("moonshotai/Kimi-K2-Thinking", "4-bit compressed-tensors"),
    ],
)
def test_a_name_says_what_the_weights_are(path: str, weights: str) -> None:
    found = served_model({"model_path": path}, None)
    assert (found.arch.weights, found.assumed) == (weights, None)


@pytest.mark.parametrize("path", ["/m", "/models/671b", "/data/checkpoint-7000", "model"])
def test_a_name_that_says_nothing_is_taken_for_r1_and_said_to_be(path: str) -> None:
    assert served_model({"model_path": path}, None).assumed == "DeepSeek-R1 with FP8 weights"


def test_the_served_name_counts_where_the_path_names_nothing() -> None:
    found = served_model({"model_path": "/model/", "served_model_name": "deepseek-ai/DeepSeek-R1"}, None)
    assert (found.arch.name, found.assumed) == ("deepseek-ai/DeepSeek-R1", None)
    for other in ("deepseek-ai/DeepSeek-V4-Pro", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "my-org/my-model"):
        with pytest.raises(UnsupportedModel, match="not modelled"):
            served_model({"served_model_name": other}, None)
    plain = served_model({"model_path": "/models/DeepSeek-R1", "served_model_name": "gpt-4"}, None)
    assert plain.arch.name == "/models/DeepSeek-R1"
    assert served_model({"model_path": "/model", "served_model_name": "my-model"}, None).assumed


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"model_path": "unsloth/DeepSeek-R1-GGUF"}, "GGUF"),
        ({"model_path": "/m/DeepSeek-R1-UD-IQ1_S"}, "GGUF"),
        ({"model_path": "/m/R1", "quantization": "w8a8_fp8"}, "w8a8_fp8"),
        ({"model_path": "/m/DeepSeek-R1-BF16", "quantization": "fp8"}, "converts it while loading"),
        ({"model_path": "/m/DeepSeek-R1", "load_format": "gguf"}, "load-format"),
        ({"model_path": "/m/DeepSeek-R1", "torchao_config": "int4wo-128"}, "torchao"),
        ({"model_path": "/m/DeepSeek-R1", "dtype": "float32"}, "32 bits"),
        ({"model_path": "/m/R1", "json_model_override_args": '{"n_routed_experts": 384}'}, "n_routed_experts"),
        ({"model_path": "Qwen/Qwen3-235B-A22B"}, "names no DeepSeek-R1"),
        ({"model_path": "openai/gpt-oss-120b"}, "names no DeepSeek-R1"),
        ({"model_path": "moonshotai/Kimi-VL-A3B-Instruct"}, "names no DeepSeek-R1"),
        ({"model_path": "moonshotai/Kimi-Linear-48B-A3B-Instruct"}, "names no DeepSeek-R1"),
        ({"model_path": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"}, "distilled from R1"),
        ({"model_path": "cyankiwi/DeepSeek-R1-AWQ-8bit"}, "AWQ of other or mixed bits"),
        ({"model_path": "QuantTrio/DeepSeek-V3.1-GPTQ-Int4-Int8Mix"}, "GPTQ of other or mixed bits"),
        ({"model_path": "deepseek-ai/DeepSeek-V2-Lite"}, "names no DeepSeek-R1"),
        ({"model_path": "someone/SomethingNew"}, "names no DeepSeek-R1"),
        ({"model_path": "/models/GLM-4.5-FP8"}, "names no DeepSeek-R1"),
    ],
)
def test_what_is_not_modelled_gets_no_verdict(values: dict[str, str], why: str) -> None:
    with pytest.raises(UnsupportedModel, match="not modelled: no verdict on memory or speed") as error:
        served_model(values, None)
    assert why in str(error.value)
    assert "--model" in str(error.value)


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": "awq", "bits": 3, "group_size": 64}, {"quant_method": "bitsandbytes"},
     {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, {"bits": 4}],
)  # fmt: skip
def test_a_config_json_of_unknown_weights_is_refused(quantization: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="not modelled"):
        parse_architecture(config_with(quantization), "config.json", "x")


def test_the_config_json_comes_before_flag_and_name(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(config_with({"quant_method": "blockwise_int8", "weight_block_size": [128, 128]}))
    given = load_architecture(file)
    found = served_model({"model_path": "moonshotai/Kimi-K2", "quantization": "blockwise_int8"}, given)
    assert (found.arch.weights, found.assumed) == ("INT8", None)
    assert "--model" in found.basis
    refused = served_model({"model_path": "/m", "quantization": "awq"}, given).violations
    assert [violation.rule for violation in refused] == ["quantization-mismatch"]


def test_a_config_json_without_quantisation_takes_the_flags_word() -> None:
    plain = parse_architecture(config_with(None), "config.json", "r1")
    assert served_model({"model_path": "/m"}, plain).arch.weights == "BF16"
    assert served_model({"model_path": "/m", "quantization": "w8a8_int8"}, plain).arch.weights == "INT8"
    with pytest.raises(UnsupportedModel, match="no quantization_config"):
        served_model({"model_path": "/m", "quantization": "fp8"}, plain)


def test_int8_weighs_what_fp8_weighs() -> None:
    assert deepseek_r1().quantised("w8a8_int8").gemm_weight_bytes == pytest.approx(1.0, abs=0.001)
    assert deepseek_r1().quantised("blockwise_int8").gemm_weight_bytes == deepseek_r1().gemm_weight_bytes


def test_fewer_layers_weigh_less() -> None:
    found = served_model({"model_path": "/m/R1", "json_model_override_args": '{"num_hidden_layers": 5}'}, None)
    assert found.arch.num_hidden_layers == 5


POINT = {
    "id": "p", "gpu": "H200", "n_gpus": 8, "tp": 8, "engine_version": "0.5.12", "isl": 1000, "osl": 1000,
    "concurrency": 8, "metric_kind": "serving",
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"launch_args": "--model-path unsloth/DeepSeek-R1-GGUF --tp 8"}, "GGUF"),
        ({"launch_args": "python3 -m sglang.launch_server --model x/R1 --quantization bitsandbytes"}, "bitsandbytes"),
        ({"model": "Qwen/Qwen3-235B-A22B"}, "names no DeepSeek-R1"),
        ({"model": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"}, "not modelled"),
        ({"launch_args": "--dtype float32"}, "32 bits"),
        (
            {"pools": [{"role": role, "servers": 1, "gpus_per_server": 8, "launch_args": "--model-path x/R1-GGUF"}
                       for role in ("prefill", "decode")], "disaggregated": True},
            "GGUF",
        ),
    ],
)  # fmt: skip
def test_a_record_of_a_model_that_is_not_modelled_has_no_prediction(more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        record_case(point_of(POINT | more))


def test_records_serve_what_they_name() -> None:
    plain = record_case(point_of(POINT))
    assert record_case(point_of(POINT | {"model": "deepseek-ai/DeepSeek-R1-0528"})).context == plain.context
    bf16 = record_case(point_of(POINT | {"model": "unsloth/DeepSeek-R1-BF16", "n_gpus": 16, "tp": 16}))
    assert bf16.context.arch.weights == "BF16"
    awq = record_case(point_of(POINT | {"launch_args": "--model-path cognitivecomputations/DeepSeek-R1-AWQ --tp 8"}))
    assert awq.context.arch.weights == "4-bit AWQ"
    unknown = record_case(point_of(POINT | {"launch_args": "--model-path /models/ours"}))
    assert any("DeepSeek-R1 with FP8 weights assumed" in warning for warning in unknown.warnings)
    given = record_case(point_of(POINT | {"model": "ours/unheard-of"}), arch=deepseek_r1())
    assert given.context == plain.context
