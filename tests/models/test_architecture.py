"""Parameter counts and the reading of config.json."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError, UnsupportedModel
from models.architecture import deepseek_r1, load_architecture


def test_published_totals_are_exact() -> None:
    model = deepseek_r1()
    assert model.total_params == 671_026_419_200
    assert model.active_gemm_params == 36_624_596_992
    assert model.mtp_layer_params == 11_610_068_224
    assert model.attention_params == 187_105_280
    assert model.expert_params == 44_040_192


def test_bytes() -> None:
    model = deepseek_r1()
    assert model.kv_bytes_per_token() == 70_272  # printed as cell_size in a public log
    assert model.kv_bytes_per_token(1.0) == 35_136
    assert model.gemm_weight_bytes == pytest.approx(1.000244, abs=1e-6)


def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("models").joinpath("configs/deepseek-r1.json").read_text())
    return found


def written(tmp_path: Path, data: dict[str, Any]) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return path


def test_a_slice_has_fewer_layers_and_the_same_layers(tmp_path: Path) -> None:
    sliced = load_architecture(written(tmp_path, config() | {"num_hidden_layers": 6}))
    assert (sliced.dense_layers, sliced.moe_layers) == (3, 3)
    assert deepseek_r1().total_params - sliced.total_params == 55 * sliced.moe_layer_params


def test_folder_or_file(tmp_path: Path) -> None:
    path = written(tmp_path, config())
    assert load_architecture(tmp_path) == load_architecture(path)


def test_another_architecture_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'llama' is not supported.*deepseek_v3"):
        load_architecture(written(tmp_path, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"first_k_dense_replace": 62}, "first_k_dense_replace 62 exceeds"),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok 257 exceeds"),
    ],
)
def test_impossible_fields_are_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_architecture(written(tmp_path, config() | change))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    data = config()
    del data["kv_lora_rank"]
    with pytest.raises(InputError, match="missing field 'kv_lora_rank'"):
        load_architecture(written(tmp_path, data))
