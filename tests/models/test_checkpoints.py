"""Checkpoints of the family: bytes against published sizes, formats as declared, and the seam of attention."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import UnsupportedModel
from models.architecture import deepseek_r1, parse_architecture
from models.architecture.shipped import Checkpoint, base_model, checkpoint_named, checkpoints
from models.architecture.stored import stored_bytes
from models.costs.attention import attention_of

R1_CONFIG = json.loads((Path(__file__).parents[2] / "models/configs/deepseek-r1.json").read_text())
PUBLISHED = [each for each in checkpoints() if each.published_bytes is not None]


@pytest.mark.parametrize("checkpoint", PUBLISHED, ids=lambda each: each.name)
def test_bytes_are_within_half_a_percent_of_the_published_size(checkpoint: Checkpoint) -> None:
    assert checkpoint.published_bytes is not None
    assert checkpoint.source
    off = abs(stored_bytes(checkpoint.arch) - checkpoint.published_bytes)
    assert off <= 0.005 * checkpoint.published_bytes


def test_sizes_are_published_of_every_base_and_of_exports() -> None:
    assert len(PUBLISHED) >= 10
    assert {each.shapes for each in PUBLISHED} == {each.shapes for each in checkpoints()}


def test_r1_and_awq_are_known_to_the_byte() -> None:
    # The rest of R1's files are safetensors' headers; AWQ's figure is its index's total_size.
    assert stored_bytes(deepseek_r1()) == 688_574_839_360
    awq = checkpoint_named("cognitivecomputations/DeepSeek-R1-AWQ")
    assert awq is not None
    assert stored_bytes(awq.arch) == awq.published_bytes == 364_589_799_936


def test_names_are_found_with_and_without_owner_and_only_whole() -> None:
    for each in checkpoints():
        assert checkpoint_named(each.name) is not None
        assert checkpoint_named(each.name.rpartition("/")[2].upper()) is not None
    assert checkpoint_named("DeepSeek-R1-AW") is None


@pytest.mark.parametrize(
    ("quantization", "label"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "4-bit AWQ"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "4-bit GPTQ"),
        ({"quant_method": "blockwise_int8", "weight_block_size": [128, 128]}, "INT8"),
        ({"quant_method": "w8a8_int8"}, "INT8"),
        ({"quant_method": "w4afp8", "group_size": 128}, "W4AFP8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "NVFP4"),
        ({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}, "NVFP4"),
    ],
)
def test_a_declared_format_is_read(quantization: dict[str, Any], label: str) -> None:
    config = json.dumps(R1_CONFIG | {"quantization_config": quantization}).encode()
    assert parse_architecture(config, "config.json", "x").weights == label


def test_a_finer_group_stores_more_scales() -> None:
    def of_group(size: int) -> int:
        quantization = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
        config = json.dumps(R1_CONFIG | {"quantization_config": quantization}).encode()
        return stored_bytes(parse_architecture(config, "config.json", "x"))

    assert of_group(32) > of_group(64) > of_group(128)


def test_k2_differs_from_r1_in_its_config_only() -> None:
    k2 = base_model("kimi-k2")
    assert (k2.n_routed_experts, k2.num_attention_heads, k2.dense_layers, k2.has_mtp) == (384, 64, 1, False)
    assert k2.total_params == pytest.approx(1.026e12, rel=0.01)


def test_sparse_attention_reads_no_more_than_its_top_tokens() -> None:
    sparse = base_model("deepseek-v3.2")
    dense = replace(sparse, index_topk=0, index_n_heads=0, index_head_dim=0)
    assert sparse.is_sparse
    assert not dense.is_sparse
    assert type(attention_of(sparse)) is not type(attention_of(dense))
    # The index key is kept beside the latent in every layer.
    assert sparse.kv_bytes_per_token(2.0) == 61 * (1152 + 132)
    assert dense.kv_bytes_per_token(2.0) == 70_272


REFUSED_SETTINGS = [
    ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "8 bits"),
    ({"quant_method": "auto-round", "bits": 4, "extra_config": {"lm_head": {"bits": 16}}}, "extra_config"),
    ({"quant_method": "quark", "layer_quant_config": {"*self_attn*": {"weight": {"dtype": "fp8"}}}}, "layer_quant"),
    ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["model.layers.7."]}, "in some layers"),
    ({"quant_method": "fp8", "weight_block_size": [1, 32]}, "MXFP8"),
    ({"bits": 4, "group_size": 64}, "without quant_method"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), REFUSED_SETTINGS)
def test_mixed_and_unknown_weights_are_named_not_guessed(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        parse_architecture(json.dumps(R1_CONFIG | {"quantization_config": settings}), "config.json", "r1")


def test_settings_are_read_as_the_methods_read_them() -> None:
    def group(settings: dict[str, Any]) -> int:
        whole = R1_CONFIG | {"quantization_config": settings}
        return parse_architecture(json.dumps(whole), "config.json", "r1").weight_formats.routed.group

    weights = {"num_bits": 4, "type": "int", "group_size": 32}
    compressed = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"targets": ["Linear"], "weights": weights}},
    }
    assert group({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}) == 64
    assert group({"quant_method": "w4afp8", "group_size": 64}) == 64
    assert group(compressed) == 32, "a group size alone means the strategy 'group'"
    assert group({"quant_method": "fp8"}) == 1, "one scale for a matrix where no block is named"


def test_shapes_that_no_equation_has_are_refused() -> None:
    for changes in ({"moe_layer_freq": 2}, {"tie_word_embeddings": True}, {"model_type": "deepseek_v32"}):
        with pytest.raises(UnsupportedModel):
            parse_architecture(json.dumps(R1_CONFIG | changes), "config.json", "r1")


def test_sparse_attention_reads_every_token_up_to_its_top_k_and_no_more() -> None:
    sparse = attention_of(base_model("deepseek-v3.2"))
    for new, before in ((100, 0), (4000, 0), (1000, 1500), (512, 30000)):
        pairs = sum(min(token, 2048) for token in range(before, before + new)) + new / 2.0
        causal = 3 * new * (before + new / 2.0)
        assert float(sparse.attended(3.0, 3.0 * new, causal)) == pytest.approx(3.0 * pairs, rel=0.002)
