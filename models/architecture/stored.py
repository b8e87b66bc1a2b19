"""Bytes of a checkpoint on disk, tensor by tensor: what an export of these shapes and formats holds, exactly."""

from __future__ import annotations

from models.architecture.shapes import ModelArchitecture
from models.quantization.components import WeightFormats
from models.quantization.formats import Kind, WeightFormat

BF16, FP32 = 2, 4


def stored_bytes(arch: ModelArchitecture) -> int:
    """Bytes of all tensors without safetensors' headers (12 MB for R1); an MTP layer has its own embedding and head.

    DeepSeek-R1's come out at 688,574,839,360 of the 688,586,727,753 published, which are those and the headers of 163
    files with 91,991 tensors; of cognitivecomputations/DeepSeek-R1-AWQ at the published total_size to the byte.
    """
    formats = arch.weight_formats
    dense = arch.dense_layers * (_attention(arch, formats) + _mlp(arch, arch.intermediate_size, formats.dense))
    moe = arch.moe_layers * _moe_layer(arch, formats)
    table = arch.vocab_size * arch.hidden_size * BF16
    draft = _draft(arch, table) if arch.has_mtp else 0
    return dense + moe + 2 * table + arch.hidden_size * BF16 + draft + arch.vision_params * BF16


def _moe_layer(arch: ModelArchitecture, formats: WeightFormats) -> int:
    experts = arch.n_routed_experts * _mlp(arch, arch.moe_intermediate_size, formats.routed)
    shared = _mlp(arch, arch.n_shared_experts * arch.moe_intermediate_size, formats.shared)
    # AutoAWQ and AutoGPTQ cast the router's bias to 16 bits with the rest.
    bias = BF16 if formats.kind is Kind.INT4 and formats.without_draft else FP32
    router = arch.n_routed_experts * (arch.hidden_size * BF16 + bias)
    return _attention(arch, formats) + experts + shared + router


def _mlp(arch: ModelArchitecture, width: int, form: WeightFormat) -> int:
    """Gate and up (width x hidden), down (hidden x width)."""
    return 2 * form.stored_bytes(width, arch.hidden_size) + form.stored_bytes(arch.hidden_size, width)


def _attention(arch: ModelArchitecture, formats: WeightFormats) -> int:
    heads, hidden = arch.num_attention_heads, arch.hidden_size
    wide = arch.qk_nope_head_dim + arch.v_head_dim
    return (
        formats.projections.stored_bytes(arch.q_lora_rank, hidden)
        + formats.projections.stored_bytes(arch.latent_width, hidden)
        + formats.projections.stored_bytes(heads * arch.q_head_dim, arch.q_lora_rank)
        + formats.kv_b.stored_bytes(heads * wide, arch.kv_lora_rank)
        + formats.output.stored_bytes(hidden, heads * arch.v_head_dim)
        + arch.layer_norm_params * BF16
        + _indexer(arch, formats)
    )


def _indexer(arch: ModelArchitecture, formats: WeightFormats) -> int:
    if not arch.is_sparse:
        return 0
    queries = formats.indexer.stored_bytes(arch.index_n_heads * arch.index_head_dim, arch.q_lora_rank)
    key = formats.indexer.stored_bytes(arch.index_head_dim, arch.hidden_size)
    heads, norm = arch.index_n_heads * arch.hidden_size * BF16, 2 * arch.index_head_dim * FP32
    return queries + key + heads + norm


def _draft(arch: ModelArchitecture, table: int) -> int:
    """The MTP layer: an MoE layer, eh_proj and three norms, and copies of embedding and head."""
    layer = _moe_layer(arch, arch.weight_formats.of_draft())
    return layer + (arch.eh_proj_params + 3 * arch.hidden_size) * BF16 + 2 * table
