"""Names SGLang groups in its own code: all-to-all backends, attention backends, graph phases."""

from __future__ import annotations

from packaging.version import Version

from models.config import ServerConfig
from models.version import at_least

# moe_a2a_backend values that stretch expert parallelism over the whole TP group (overrides.py:1578).
SPANNING = frozenset({
    "megamoe", "deepep", "deepep_v2", "mooncake", "nixl", "ascend_fuseep", "flashinfer", "flashinfer_megamoe",
    "mori", "pplx",
})  # fmt: skip
PAGED_64 = ("flashmla",)
# From here on SGLang takes the checkpoint's quantization and its own MoE runner on Blackwell (server_args.py of 0.5.5).
TRTLLM_RUNNER = "0.5.5"
PAGED_32_64 = ("trtllm_mla", "cutedsl_mla")


def attention_pair(config: ServerConfig) -> tuple[str, str]:
    """Return the attention backends of prefill and decode."""
    both = config.attention_backend or ""
    decode = str(config.flag("decode_attention_backend") or both)
    only_decodes = "cutedsl_mla" in (both, decode)
    return str(config.flag("prefill_attention_backend") or ("trtllm_mla" if only_decodes else both)), decode


# Sparse attention: its backend, renamed in 0.5.13 (both names are taken since).
SPARSE, SPARSE_BEFORE, SPARSE_RENAMED = "dsa", "nsa", "0.5.13"
SPARSE_RELEASE = "0.5.3"
# Methods whose MoE layers TensorRT-LLM's kernels take (server_args.py of 0.5.5).
TRTLLM_METHODS = ("fp8", "modelopt_fp8", "modelopt_fp4")


def sparse_backend(version: Version) -> str:
    """Return what the release calls the attention backend of DeepSeek-V3.2."""
    return SPARSE if at_least(version, SPARSE_RENAMED) else SPARSE_BEFORE


def moe_runner(config: ServerConfig, version: Version, *, blackwell: bool) -> str:
    """Return the MoE runner: on Blackwell `auto` becomes flashinfer_trtllm for FP8 and FP4, from 0.5.5 on."""
    runner = config.moe_runner_backend or "auto"
    alone = config.moe_a2a_backend == "none" and at_least(version, TRTLLM_RUNNER)
    return "flashinfer_trtllm" if runner == "auto" and blackwell and alone else runner


def a2a_backend(config: ServerConfig) -> str:
    """Return the all-to-all backend as SGLang settles it, after the memory step: waterfill forces deepep."""
    if config.flag("enable_waterfill") and config.moe_a2a_backend not in ("deepep", "megamoe"):
        return "deepep"
    return config.moe_a2a_backend
