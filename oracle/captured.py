"""Decode graph sizes of releases that settle them in the graph runner: its own function, taken out of its file and run.

The runner itself cannot be imported without kernels. The function reads the server's arguments, the GPU's memory and
the size of the request pool, which here is large enough to bound nothing.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from extract import function_of, plain, run

RUNNER = "sglang/srt/model_executor/cuda_graph_runner.py"
FUNCTION = "get_batch_sizes_to_capture"
GATHERS = ("require_mlp_tp_gather", "require_attn_tp_gather", "require_gathered_buffer", "require_mlp_sync")
LARGE_POOL = 1_000_000


def captured_sizes(folder: Path, args: Any, memory_mib: float) -> list[int] | None:
    """Return the sizes the release captures for these arguments, None where graphs are off or settled elsewhere."""
    file = folder / RUNNER
    function = function_of(file, FUNCTION)
    if function is None or args.disable_cuda_graph:
        return None
    import torch

    hip = torch.version.hip is not None
    dp = args.dp_size if args.enable_dp_attention else 1
    cp = getattr(args, "attn_cp_size", None) or 1
    names: dict[str, Any] = {
        "is_hip_": hip,
        "_is_hip": hip,
        "get_device_memory_capacity": lambda *_: memory_mib,
        "get_attention_tp_size": lambda: args.tp_size // dp // cp,
        "get_attention_cp_size": lambda: cp,
        "is_tbo_enabled": lambda: bool(getattr(args, "enable_two_batch_overlap", False)),
        "log_info_on_rank0": lambda *_: None,
        "logger": SimpleNamespace(info=print, warning=print),
    }
    _gathered_buffer(folder, args, names)
    run([plain(function)], file, names)
    pool = SimpleNamespace(size=LARGE_POOL)
    runner = SimpleNamespace(server_args=args, req_to_token_pool=pool, is_draft_worker=False)
    tokens = [_tokens_per_request(args)] if len(function.args.args) > 1 else []  # asked from 0.5.9 on
    sizes: list[int] = names[FUNCTION](runner, *tokens)[0]
    below_pool = [size for size in sizes if size < LARGE_POOL - 1]
    max(below_pool)  # as the graph runner does: it stops where no size is left
    return below_pool


def _gathered_buffer(folder: Path, args: Any, names: dict[str, Any]) -> None:
    """Add the release's own question whether activations are gathered; what it asks of other modules is in `args`."""
    none = (getattr(args, "moe_a2a_backend", None) or "none") == "none"
    names["get_moe_a2a_backend"] = lambda: SimpleNamespace(is_none=lambda: none)
    for file in (folder / "sglang/srt/utils.py", folder / "sglang/srt/utils/common.py"):
        functions = [function_of(file, name) for name in GATHERS]
        run([plain(function) for function in functions if function is not None], file, names)


def _tokens_per_request(args: Any) -> int:
    """Return the tokens that a request verifies in one decode pass."""
    drafts: int | None = args.speculative_num_draft_tokens if args.speculative_algorithm else None
    return drafts or 1
