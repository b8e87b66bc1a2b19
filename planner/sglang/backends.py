"""Names SGLang groups in its own code: all-to-all backends, attention backends, graph phases."""

from __future__ import annotations

from models.config import ServerConfig

# moe_a2a_backend values that stretch expert parallelism over the whole TP group (overrides.py:1578).
SPANNING = frozenset({
    "megamoe", "deepep", "deepep_v2", "mooncake", "nixl", "ascend_fuseep", "flashinfer", "flashinfer_megamoe",
    "mori", "pplx",
})  # fmt: skip
# All-to-all backends whose prefill can be captured in breakable CUDA graphs (cuda_graph_hook.py:217).
GRAPHED_A2A = frozenset({"none", "deepep", "megamoe", "flashinfer"})
PAGED_64 = ("flashmla",)
PAGED_32_64 = ("trtllm_mla", "cutedsl_mla")


def attention_pair(config: ServerConfig) -> tuple[str, str]:
    """Return the attention backends of prefill and decode."""
    both = config.attention_backend or ""
    decode = str(config.flag("decode_attention_backend") or both)
    only_decodes = "cutedsl_mla" in (both, decode)
    return str(config.flag("prefill_attention_backend") or ("trtllm_mla" if only_decodes else both)), decode


def decode_graphs(config: ServerConfig) -> bool:
    """Say whether decode graphs are captured: an explicit backend beats the switches (cuda_graph_hook.py:31)."""
    chosen = _chosen_backend(config, "decode")
    if chosen is not None:
        return chosen != "disabled"
    if config.disable_cuda_graph or config.flag("disable_decode_cuda_graph"):
        return False
    return bool(config.flag("disaggregation_mode", "null") != "prefill")


def prefill_graphs(config: ServerConfig) -> str | None:
    """Return the backend of the prefill graphs as SGLang's memory step sees it, or None when they are off."""
    chosen = _chosen_backend(config, "prefill")
    if chosen is not None:
        return None if chosen == "disabled" else chosen
    if config.disable_cuda_graph or config.flag("disable_prefill_cuda_graph"):
        return None
    impossible = (
        config.pp_size > 1
        or int(config.flag("attn_cp_size", 1)) > 1
        or int(config.flag("dcp_size", 1)) > 1
        or bool(config.flag("enable_two_batch_overlap"))
        or config.moe_a2a_backend not in GRAPHED_A2A
        or config.flag("disaggregation_mode", "null") == "decode"
    )
    return None if impossible else "breakable"


def a2a_backend(config: ServerConfig) -> str:
    """Return the all-to-all backend as SGLang settles it, after the memory step: waterfill forces deepep."""
    if config.flag("enable_waterfill") and config.moe_a2a_backend not in ("deepep", "megamoe"):
        return "deepep"
    return config.moe_a2a_backend


def _chosen_backend(config: ServerConfig, phase: str) -> str | None:
    settings = config.flag("cuda_graph_config") or {}
    explicit = dict(settings).get(phase) or {}
    value = dict(explicit).get("backend") or config.flag(f"cuda_graph_backend_{phase}")
    return None if value is None else str(value)
