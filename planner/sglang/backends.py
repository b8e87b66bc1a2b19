"""Names SGLang groups in its own code: all-to-all backends, attention backends, graph phases."""

from __future__ import annotations

from models.config import ServerConfig

# moe_a2a_backend values that stretch expert parallelism over the whole TP group (overrides.py:1578).
SPANNING = frozenset({
    "megamoe", "deepep", "deepep_v2", "mooncake", "nixl", "ascend_fuseep", "flashinfer", "flashinfer_megamoe",
    "mori", "pplx",
})  # fmt: skip
PAGED_64 = ("flashmla",)
PAGED_32_64 = ("trtllm_mla", "cutedsl_mla")


def attention_pair(config: ServerConfig) -> tuple[str, str]:
    """Return the attention backends of prefill and decode."""
    both = config.attention_backend or ""
    decode = str(config.flag("decode_attention_backend") or both)
    only_decodes = "cutedsl_mla" in (both, decode)
    return str(config.flag("prefill_attention_backend") or ("trtllm_mla" if only_decodes else both)), decode


def a2a_backend(config: ServerConfig) -> str:
    """Return the all-to-all backend as SGLang settles it, after the memory step: waterfill forces deepep."""
    if config.flag("enable_waterfill") and config.moe_a2a_backend not in ("deepep", "megamoe"):
        return "deepep"
    return config.moe_a2a_backend
