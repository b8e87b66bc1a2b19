"""ModelArchitecture: the DeepSeek-V3 family (MLA attention, routed and shared experts) from config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from hwprobe.bounds import MODEL, check_fields
from hwprobe.errors import InputError, UnsupportedModel
from hwprobe.files import decode_json, read_bytes

SUPPORTED_MODEL_TYPE = "deepseek_v3"
# What the weights are, by the checkpoint's quant_method. INT8 has the bytes of FP8; its kernels' speed is not modelled.
MODELLED_WEIGHTS = {"fp8": "FP8", "blockwise_int8": "INT8", "w8a8_int8": "INT8"}
# One fp32 scale (`weight_scale_inv`) per 128 x 128 block of FP8 weights, or per channel of INT8.
SCALE_BYTES = 4

Count = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantization:
    quant_method: str
    weight_block_size: tuple[Count, Count] | None = (128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    quant_method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelType:
    model_type: str = "unknown"
    architectures: tuple[str, ...] = ()
    quantization_config: _Method | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArchitecture:
    """Shapes of one model, named as in its config.json. Parameter counts are exact integers.

    The counts reproduce the published totals of DeepSeek-V3/R1 (671,026,419,200 in all;
    36,624,596,992 used in matrix products per token). `sliced_from` is 0, or the layers of the model that this is a
    slice of.
    """

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    moe_intermediate_size: Count
    num_hidden_layers: Count
    first_k_dense_replace: Annotated[int, Meta(ge=0)]
    num_attention_heads: Count
    n_routed_experts: Count
    n_shared_experts: Count
    num_experts_per_tok: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    max_position_embeddings: Count
    num_nextn_predict_layers: int = 0
    quantization_config: _Quantization | None = None
    name: str = "unnamed"
    sliced_from: int = 0

    @property
    def has_mtp(self) -> bool:
        """Whether the checkpoint holds a draft layer for multi-token prediction."""
        return self.num_nextn_predict_layers > 0

    # --- layers -------------------------------------------------------------------------------
    @property
    def dense_layers(self) -> int:
        return min(self.first_k_dense_replace, self.num_hidden_layers)

    @property
    def moe_layers(self) -> int:
        return self.num_hidden_layers - self.dense_layers

    def sliced(self, layers: int, dense: int | None = None) -> ModelArchitecture:
        """Return the model cut to its first `layers` layers, `dense` of them dense (None: as many as it has).

        Embedding and head are kept, as SGLang keeps them when `--json-model-override-args` lowers
        num_hidden_layers. All layers make the model itself. Raises InputError for more than there are.
        """
        first = self.first_k_dense_replace if dense is None else dense
        if not 1 <= layers <= self.num_hidden_layers:
            raise InputError(
                f"a slice of {layers} layers: {self.name} has {self.num_hidden_layers}, and a slice at least 1"
            )
        if not 0 <= min(first, layers) <= self.dense_layers:
            raise InputError(f"a slice with {first} dense layers: {self.name} has {self.dense_layers}")
        if (layers, min(first, layers)) == (self.num_hidden_layers, self.dense_layers):
            return self
        whole = self.sliced_from or self.num_hidden_layers
        return replace(self, num_hidden_layers=layers, first_k_dense_replace=min(first, layers), sliced_from=whole)

    # --- parameters of one layer --------------------------------------------------------------
    @property
    def qkv_a_width(self) -> int:
        """Output width of the fused down-projections q_a and kv_a (2,112 for R1)."""
        return self.q_lora_rank + self.latent_width

    @property
    def latent_width(self) -> int:
        """Values one token keeps in the KV cache of one layer: latent and rotary key (576)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def q_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def attn_replicated_params(self) -> int:
        """q_a and kv_a: SGLang keeps a copy on every TP rank."""
        return self.hidden_size * self.qkv_a_width

    @property
    def q_b_params(self) -> int:
        return self.q_lora_rank * self.num_attention_heads * self.q_head_dim

    @property
    def kv_b_params(self) -> int:
        return self.kv_lora_rank * self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def o_params(self) -> int:
        return self.num_attention_heads * self.v_head_dim * self.hidden_size

    @property
    def attn_sharded_params(self) -> int:
        """q_b, kv_b and o: sharded over the attention-TP group."""
        return self.q_b_params + self.kv_b_params + self.o_params

    @property
    def attention_params(self) -> int:
        return self.attn_replicated_params + self.attn_sharded_params

    @property
    def expert_params(self) -> int:
        """Gate, up and down projection of one routed expert."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def shared_expert_params(self) -> int:
        return self.n_shared_experts * self.expert_params

    @property
    def gate_params(self) -> int:
        """Router weights and the correction bias."""
        return self.n_routed_experts * self.hidden_size + self.n_routed_experts

    @property
    def dense_mlp_params(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def layer_norm_params(self) -> int:
        return 2 * self.hidden_size + self.q_lora_rank + self.kv_lora_rank

    @property
    def moe_layer_params(self) -> int:
        return (
            self.attention_params
            + self.n_routed_experts * self.expert_params
            + self.shared_expert_params
            + self.gate_params
            + self.layer_norm_params
        )

    @property
    def dense_layer_params(self) -> int:
        return self.attention_params + self.dense_mlp_params + self.layer_norm_params

    # --- the whole model ----------------------------------------------------------------------
    @property
    def embedding_params(self) -> int:
        """Embedding table; the LM head is as large again."""
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """All weights but the MTP layer, which the published total leaves out too."""
        return (
            self.moe_layers * self.moe_layer_params
            + self.dense_layers * self.dense_layer_params
            + 2 * self.embedding_params
            + self.hidden_size  # final norm
        )

    @property
    def active_gemm_params(self) -> int:
        """Weights multiplied for one token: no embedding (a look-up), no norms, no router bias."""
        moe = (
            self.num_experts_per_tok + self.n_shared_experts
        ) * self.expert_params + self.n_routed_experts * self.hidden_size
        return (
            self.num_hidden_layers * self.attention_params
            + self.moe_layers * moe
            + self.dense_layers * self.dense_mlp_params
            + self.embedding_params
        )

    @property
    def mtp_layer_params(self) -> int:
        """One MoE layer, the projection of (embedding, hidden state), and its three norms."""
        return self.moe_layer_params + self.eh_proj_params + 3 * self.hidden_size

    @property
    def eh_proj_params(self) -> int:
        return 2 * self.hidden_size * self.hidden_size

    # --- bytes --------------------------------------------------------------------------------
    @property
    def weights(self) -> str:
        """What the routed experts and projections are stored as: FP8, INT8 or BF16."""
        return MODELLED_WEIGHTS[self.quantization_config.quant_method] if self.quantization_config else "BF16"

    @property
    def is_fp8(self) -> bool:
        return self.weights == "FP8"

    @property
    def gemm_weight_bytes(self) -> float:
        """Bytes per quantised weight, scales included (1.000244 for FP8 in 128 x 128 blocks)."""
        if self.quantization_config is None:
            return 2.0
        if self.quantization_config.quant_method == "w8a8_int8":
            return 1.0 + SCALE_BYTES / self.hidden_size  # one scale for each output channel
        if self.quantization_config.weight_block_size is None:
            return 1.0
        rows, columns = self.quantization_config.weight_block_size
        return 1.0 + SCALE_BYTES / (rows * columns)

    def quantised(self, method: str | None) -> ModelArchitecture:
        """Return the same model with weights of another `quant_method` (a key of MODELLED_WEIGHTS; None: BF16)."""
        blocks = None if method == "w8a8_int8" else (128, 128)
        config = _Quantization(quant_method=method, weight_block_size=blocks) if method else None
        return replace(self, quantization_config=config)

    def kv_bytes_per_token(self, element_bytes: float = 2.0, layers: int | None = None) -> float:
        """Bytes one token holds in a rank's KV cache (70,272 for R1 in BF16; MLA keeps one latent)."""
        return (
            (self.num_hidden_layers if layers is None else layers)  #
            * self.latent_width
            * element_bytes
        )


def parse_architecture(data: bytes | str, where: str, name: str) -> ModelArchitecture:
    """Read a Hugging Face config.json. Raises UnsupportedModel or InputError naming the field."""
    kind = decode_json(data, _ModelType, where)
    if kind.model_type != SUPPORTED_MODEL_TYPE:
        raise UnsupportedModel(
            f"{where}: model_type '{kind.model_type}' is not supported; sgtune models the DeepSeek-V3 family "
            f"(model_type '{SUPPORTED_MODEL_TYPE}': DeepSeek-V3, V3-0324, V3.1, R1, R1-0528)"
        )
    method = kind.quantization_config.quant_method if kind.quantization_config else None
    if kind.quantization_config and method not in MODELLED_WEIGHTS:
        raise UnsupportedModel(
            f"{where}: weights quantised by '{str(method)[:40]}' are not modelled: no verdict on memory or "
            "speed; sgtune models FP8, INT8 (memory alone) and BF16 weights: give a config.json of those"
        )
    model = decode_json(data, ModelArchitecture, where)
    check_fields(model, MODEL, where)
    if model.first_k_dense_replace > model.num_hidden_layers:
        raise InputError(
            f"{where}: first_k_dense_replace {model.first_k_dense_replace} exceeds "
            f"num_hidden_layers {model.num_hidden_layers}"
        )
    if model.num_experts_per_tok > model.n_routed_experts:
        raise InputError(
            f"{where}: num_experts_per_tok {model.num_experts_per_tok} exceeds "
            f"n_routed_experts {model.n_routed_experts}"
        )
    return replace(model, name=name)


def load_architecture(path: Path) -> ModelArchitecture:
    """Read a config.json, or the one in a model folder."""
    file = path / "config.json" if path.is_dir() else path
    name = file.parent.name if file.name == "config.json" and file.parent.name else file.stem
    return parse_architecture(read_bytes(file, "model config"), str(file), name)


@cache
def deepseek_r1() -> ModelArchitecture:
    """Return the shipped DeepSeek-R1 671B FP8."""
    data = files("models").joinpath("configs/deepseek-r1.json").read_bytes()
    return parse_architecture(data, "deepseek-r1.json", "deepseek-ai/DeepSeek-R1")
