"""ModelArchitecture: shapes and parameter counts of the DeepSeek-V3 family (MLA, routed and shared experts)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from hwprobe.errors import InputError
from models.quantization.components import BF16_WEIGHTS, PRESETS, WeightFormats
from models.quantization.formats import Kind, WeightFormat

# What the weights are called in answers, by what the routed experts are.
LABELS = {Kind.FP8: "FP8", Kind.INT8: "INT8", Kind.BF16: "BF16"}

# Values that share a scale in the caches of sparse attention.
SPARSE_BLOCK = 128

# Hidden size, heads, experts, vocabulary and attention of the models whose memory SGLang's logs confirm: V3 and R1.
CONFIRMED = (7168, 128, 256, 129_280, False)

Count = Annotated[int, Meta(ge=1)]
Maybe = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArchitecture:
    """Shapes of one model, named as in its config.json. Parameter counts are exact integers.

    The counts reproduce the published totals of DeepSeek-V3/R1 (671,026,419,200 in all;
    36,624,596,992 used in matrix products per token). `index_*` are those of the sparse attention's indexer (0: dense
    attention), `vision_params` a vision tower beside the text model. `sliced_from` is 0, or the layers of the model
    that this is a slice of.
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
    index_n_heads: Maybe = 0
    index_head_dim: Maybe = 0
    index_topk: Maybe = 0
    vision_params: Maybe = 0
    model_type: str = "deepseek_v3"
    weight_formats: WeightFormats = BF16_WEIGHTS
    name: str = "unnamed"
    sliced_from: int = 0

    @property
    def has_mtp(self) -> bool:
        """Whether the checkpoint holds a draft layer for multi-token prediction."""
        return self.num_nextn_predict_layers > 0 and not self.weight_formats.without_draft

    @property
    def is_sparse(self) -> bool:
        """Whether attention reads the tokens that an indexer chose (DeepSeek-V3.2), not all of the context."""
        return self.index_topk > 0

    @property
    def is_unconfirmed(self) -> bool:
        """Whether no log of SGLang has confirmed what a model of these shapes takes: R1's and V3's are confirmed."""
        confirmed = (self.hidden_size, self.num_attention_heads, self.n_routed_experts, self.vocab_size, self.is_sparse)
        return confirmed != CONFIRMED

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
    def indexer_params(self) -> int:
        """Projections of the sparse attention's indexer: queries from q_a's output, one key, a weight for each head."""
        if not self.is_sparse:
            return 0
        queries = self.q_lora_rank * self.index_n_heads * self.index_head_dim
        return queries + self.hidden_size * (self.index_head_dim + self.index_n_heads)

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
            + self.indexer_params
        )

    @property
    def dense_layer_params(self) -> int:
        return self.attention_params + self.dense_mlp_params + self.layer_norm_params + self.indexer_params

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
            self.num_hidden_layers * (self.attention_params + self.indexer_params)
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
        """What the weights are, as answers name them: FP8, INT8, BF16, 4-bit AWQ, NVFP4, ..."""
        return LABELS.get(self.weight_formats.kind, self.weight_formats.label)

    @property
    def is_fp8(self) -> bool:
        return self.weight_formats.kind is Kind.FP8

    @property
    def gemm_weight_bytes(self) -> float:
        """Bytes per weight of the routed experts, scales included (1.000244 for FP8 in 128 x 128 blocks)."""
        return self.bytes_per_weight(self.weight_formats.routed)

    def bytes_per_weight(self, each: WeightFormat) -> float:
        """Bytes per weight of a matrix as wide as the hidden state, in this format."""
        return each.bytes_per_weight(self.hidden_size)

    @property
    def attn_sharded_weight_bytes(self) -> float:
        """Bytes per weight of q_b, kv_b and o together."""
        formats = self.weight_formats
        return self._mean(
            (self.q_b_params, formats.projections), (self.kv_b_params, formats.kv_b), (self.o_params, formats.output)
        )

    def _mean(self, *parts: tuple[int, WeightFormat]) -> float:
        """Bytes per weight over several matrices; exactly that of one where they share their format."""
        each = [self.bytes_per_weight(form) for _, form in parts]
        if len(set(each)) == 1:
            return each[0]
        total = sum(count for count, _ in parts)
        return sum(count * size for (count, _), size in zip(parts, each, strict=True)) / total

    def quantised(self, method: str | None) -> ModelArchitecture:
        """Return the same model as exports of another kind hold it (a key of PRESETS; None: BF16)."""
        return replace(self, weight_formats=BF16_WEIGHTS if method is None else PRESETS[method])

    def kv_bytes_per_token(self, element_bytes: float = 2.0, layers: int | None = None) -> float:
        """Bytes one token holds in a rank's KV cache (70,272 for R1 in BF16; MLA keeps one latent)."""
        count = self.num_hidden_layers if layers is None else layers
        return count * self.cache_bytes(element_bytes)

    def cache_bytes(self, element_bytes: float) -> float:
        """Bytes one token keeps in one layer: the latent and the rotary key, and the index key of sparse attention.

        Sparse attention's FP8 cache has scales of its own and leaves the rotary key in BF16: 656 bytes; its index key
        is FP8 with one fp32 scale per 128 values: 132 bytes (SGLang's memory_pool.py: NSATokenToKVPool).
        """
        if not self.is_sparse:
            return self.latent_width * element_bytes
        latent = self.latent_width * element_bytes
        if element_bytes < 2.0:
            latent = self.kv_lora_rank + self.kv_lora_rank // SPARSE_BLOCK * 4 + 2 * self.qk_rope_head_dim
        return latent + self.index_cache_bytes

    @property
    def index_cache_bytes(self) -> float:
        """Bytes of a token's index key in one layer (0 without an indexer)."""
        return float(self.index_head_dim + self.index_head_dim // SPARSE_BLOCK * 4) if self.is_sparse else 0.0
