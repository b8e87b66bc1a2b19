"""WeightFormats: the format of each component of a checkpoint, and how published exports combine them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.quantization import formats
from models.quantization.formats import Kind, WeightFormat

# The components a format is given for, and the module of SGLang's that stands for each in a quantization_config.
MODULES = {
    "routed": "mlp.experts.0.gate_proj",
    "shared": "mlp.shared_experts.gate_proj",
    "projections": "self_attn.q_b_proj",
    "kv_b": "self_attn.kv_b_proj",
    "output": "self_attn.o_proj",
    "dense": "mlp.down_proj",
    "indexer": "self_attn.indexer.wq_b",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormats:
    """Formats by component. `method` is the quant_method SGLang takes them for (None: unquantised).

    `projections` are q_a, kv_a and q_b; `draft` is the format of the MTP layer's matrices where it differs from the
    model's (None: as the model), and `without_draft` says that the export leaves the MTP layer out. Embedding, router
    and norms are BF16 everywhere.
    """

    method: str | None = None
    label: str = "BF16"
    routed: WeightFormat = formats.BF16
    shared: WeightFormat = formats.BF16
    projections: WeightFormat = formats.BF16
    kv_b: WeightFormat = formats.BF16
    output: WeightFormat = formats.BF16
    dense: WeightFormat = formats.BF16
    indexer: WeightFormat = formats.BF16
    head: WeightFormat = formats.BF16
    draft: WeightFormat | None = None
    without_draft: bool = False

    @property
    def kind(self) -> Kind:
        """What the routed experts are, which are nearly all of the weights."""
        return self.routed.kind

    def of_draft(self) -> WeightFormats:
        """Return the formats of the MTP layer."""
        if self.draft is None:
            return self
        return replace(uniform(self.method, self.label, self.draft), without_draft=self.without_draft)


def uniform(method: str | None, label: str, each: WeightFormat) -> WeightFormats:
    """Return formats with every matrix of the layers in `each`."""
    return WeightFormats(
        method=method,
        label=label,
        routed=each,
        shared=each,
        projections=each,
        kv_b=each,
        output=each,
        dense=each,
        indexer=each,
    )


def _attention_bf16(method: str, label: str, each: WeightFormat) -> WeightFormats:
    """Return formats that leave attention and the MTP layer in BF16."""
    plain = formats.BF16
    return replace(
        uniform(method, label, each), projections=plain, kv_b=plain, output=plain, indexer=plain, draft=plain
    )


BF16_WEIGHTS = WeightFormats()
FP8_WEIGHTS = uniform("fp8", "FP8", formats.FP8_BLOCK)
# How exports are published, by what they are called; the group sizes are those of the best-known one.
PRESETS: dict[str, WeightFormats] = {
    "fp8": FP8_WEIGHTS,
    # meituan/DeepSeek-R1-Block-INT8 and -Channel-INT8: converted tensor by tensor, MTP layer included.
    "blockwise_int8": uniform("blockwise_int8", "INT8", formats.INT8_BLOCK),
    "w8a8_int8": uniform("w8a8_int8", "INT8", formats.INT8_CHANNEL),
    # cognitivecomputations/DeepSeek-R1-AWQ: groups of 64; transformers leaves the MTP layer out.
    "awq": replace(uniform("awq", "4-bit AWQ", formats.awq(64)), without_draft=True),
    # OPEA/DeepSeek-R1-int4-gptq-sym-inc, groups of 128.
    "gptq": replace(uniform("gptq", "4-bit GPTQ", formats.gptq(128)), without_draft=True),
    "auto-round": replace(uniform("auto-round", "4-bit AutoRound", formats.gptq(128)), without_draft=True),
    # RedHatAI/DeepSeek-R1-quantized.w4a16: groups of 128.
    "compressed-tensors": replace(
        uniform("compressed-tensors", "4-bit compressed-tensors", formats.packed_int4(128)), without_draft=True
    ),
    # moonshotai/Kimi-K2-Thinking: routed experts alone, groups of 32.
    "kimi-int4": replace(uniform("compressed-tensors", "4-bit experts", formats.BF16), routed=formats.packed_int4(32)),
    # novita/Deepseek-R1-W4AFP8: routed experts alone, the rest as DeepSeek's FP8.
    "w4afp8": replace(uniform("w4afp8", "W4AFP8", formats.FP8_BLOCK), routed=formats.W4AFP8),
    # nvidia/DeepSeek-R1-0528-FP4: attention BF16; v2 has o_proj in FP4, too. The MTP layer stays BF16.
    "modelopt_fp4": _attention_bf16("modelopt_fp4", "NVFP4", formats.NVFP4),
    "modelopt_fp4_v2": replace(_attention_bf16("modelopt_fp4", "NVFP4", formats.NVFP4), output=formats.NVFP4),
    # amd/DeepSeek-R1-MXFP4-Preview: attention BF16.
    "quark": _attention_bf16("quark", "MXFP4", formats.MXFP4),
}
