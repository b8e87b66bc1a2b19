"""Decode graph sizes of releases that settle them in the graph runner: its own function, taken out of its file and run.

The runner itself cannot be imported without kernels. The function reads the server's arguments, the GPU's memory and
the size of the request pool, which here is large enough to bound nothing.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

RUNNER = "sglang/srt/model_executor/cuda_graph_runner.py"
FUNCTION = "get_batch_sizes_to_capture"
LARGE_POOL = 1_000_000


def captured_sizes(folder: Path, args: Any, memory_mib: float) -> list[int] | None:
    """Return the sizes the release captures for these arguments, None where graphs are off or settled elsewhere."""
    code = _function(folder)
    if code is None or args.disable_cuda_graph:
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
        "require_gathered_buffer": lambda _: bool(args.enable_dp_attention),
        "require_mlp_sync": lambda _: bool(args.enable_dp_attention),
        "is_tbo_enabled": lambda: bool(getattr(args, "enable_two_batch_overlap", False)),
        "log_info_on_rank0": lambda *_: None,
        "logger": SimpleNamespace(info=print, warning=print),
    }
    exec(code, names)
    pool = SimpleNamespace(size=LARGE_POOL)
    runner = SimpleNamespace(server_args=args, req_to_token_pool=pool, is_draft_worker=False)
    sizes: list[int] = names[FUNCTION](runner)[0]
    return [size for size in sizes if size < LARGE_POOL - 1]


@cache
def _function(folder: Path) -> CodeType | None:
    file = folder / RUNNER
    if not file.is_file():
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION]
    if not found:
        return None
    for argument in found[0].args.args:
        argument.annotation = None
    found[0].returns = None
    return compile(ast.Module(body=list(found), type_ignores=[]), str(file), "exec")
