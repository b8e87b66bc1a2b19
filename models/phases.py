"""Which phases a launch serves, and which of them run in CUDA graphs, as SGLang's memory step sees it."""

from __future__ import annotations

from models.config import ServerConfig

# All-to-all backends whose prefill can be captured in breakable CUDA graphs (cuda_graph_hook.py:217).
GRAPHED_A2A = frozenset({"none", "deepep", "megamoe", "flashinfer"})


def prefills(config: ServerConfig) -> bool:
    """Say whether the server takes prompts: all but the decode servers of a disaggregated fleet do."""
    return bool(config.flag("disaggregation_mode", "null") != "decode")


def decodes(config: ServerConfig) -> bool:
    """Say whether the server generates: all but the prefill servers of a disaggregated fleet do."""
    return bool(config.flag("disaggregation_mode", "null") != "prefill")


def decode_graphs(config: ServerConfig) -> bool:
    """Say whether decode graphs are captured: an explicit backend beats the switches (cuda_graph_hook.py:31)."""
    backend = _chosen_backend(config, "decode")
    if backend is not None:
        return backend != "disabled"
    if config.disable_cuda_graph or config.flag("disable_decode_cuda_graph"):
        return False
    return decodes(config)


def prefill_graphs(config: ServerConfig) -> str | None:
    """Return the backend of the prefill graphs as SGLang's memory step sees it, or None when they are off."""
    backend = _chosen_backend(config, "prefill")
    if backend is not None:
        return None if backend == "disabled" else backend
    if config.disable_cuda_graph or config.flag("disable_prefill_cuda_graph"):
        return None
    impossible = (
        config.pp_size > 1
        or int(config.flag("attn_cp_size", 1)) > 1
        or int(config.flag("dcp_size", 1)) > 1
        or bool(config.flag("enable_two_batch_overlap"))
        or config.moe_a2a_backend not in GRAPHED_A2A
        or not prefills(config)
    )
    return None if impossible else "breakable"


def _chosen_backend(config: ServerConfig, phase: str) -> str | None:
    settings = config.flag("cuda_graph_config") or {}
    explicit = dict(settings).get(phase) or {}
    value = dict(explicit).get("backend") or config.flag(f"cuda_graph_backend_{phase}")
    return None if value is None else str(value)
