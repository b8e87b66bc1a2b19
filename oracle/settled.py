"""What releases settle and refuse after the arguments: scheduler, model configuration and model runner.

Each piece is the release's own code, taken out of its file and run on the resolved arguments of a launch of R1.
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from extract import function_of, plain, run, tree_of

SCHEDULER = "sglang/srt/managers/scheduler.py"
MODEL_CONFIG = "sglang/srt/configs/model_config.py"
MODEL_RUNNER = "sglang/srt/model_executor/model_runner.py"
LONGEST_CONTEXT, KV_HEADS = 163840, 128  # of R1's config.json
LOG = SimpleNamespace(info=print, warning=print)
HOPPER, BLACKWELL = 9, 10


def settle(folder: Path, args: Any) -> Any:
    """Return the arguments as the release leaves them at start. Raises what the release raises."""
    check_scheduler(folder, args)
    check_context(folder, args)
    return settle_attention(folder, args)


def check_scheduler(folder: Path, args: Any) -> None:
    """Run the scheduler's assertions that look at nothing but the arguments."""
    file = folder / SCHEDULER
    for node in _assertions(tree_of(file)):
        run([node], file, {"server_args": args})


def _assertions(tree: ast.Module | None) -> list[ast.stmt]:
    """Return the assertions of the scheduler's construction, those under no condition."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []
    methods = [node for each in classes if each.name == "Scheduler" for node in each.body]
    starting = [
        each for each in methods if isinstance(each, ast.FunctionDef) and each.name.startswith(("__init", "init"))
    ]
    asserts = [node for method in starting for node in method.body if isinstance(node, ast.Assert)]
    return [node for node in asserts if _names(node.test) == {"server_args"}]


def _names(node: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def check_context(folder: Path, args: Any) -> None:
    """Run what the model configuration says of a longer context than the model's.

    It stands in the constructor at first, later in a function of its own, which also asks whether it is a draft's.
    """
    file = folder / MODEL_CONFIG
    check = _context_check(file)
    if check is None or args.context_length is None:
        return
    names: dict[str, Any] = {
        "self": SimpleNamespace(),
        "is_draft_model": False,
        "context_length": args.context_length,
        "derived_context_len": LONGEST_CONTEXT,
        "get_bool_env_var": lambda *_, **__: False,
        "envs": SimpleNamespace(SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=SimpleNamespace(get=lambda: False)),
        "is_in_ci": lambda: False,
        "logger": LOG,
    }
    run([check], file, names)


def _context_check(file: Path) -> ast.stmt | None:
    """Return the statement that compares the context asked for with the model's, where one stands by itself."""
    function = function_of(file, "_derive_context_length") or function_of(file, "__init__")
    test_source = ast.unparse(ast.parse("context_length is not None", mode="eval"))
    bodies = function.body if function else []
    return next((node for node in bodies if isinstance(node, ast.If) and ast.unparse(node.test) == test_source), None)


def settle_attention(folder: Path, args: Any) -> Any:
    """Return the arguments with the attention backend of releases whose model runner chooses it."""
    file = folder / MODEL_RUNNER
    function = function_of(file, "model_specific_adjustment")
    if function is None or "server_args.attention_backend =" not in ast.unparse(function):
        return args
    names = _names_of_runner(file)
    run([plain(function)], file, names)
    settled = copy.copy(args)
    names[function.name](_runner(settled))
    return settled


def _names_of_runner(file: Path) -> dict[str, Any]:
    import torch

    tree, hip = tree_of(file), torch.version.hip is not None
    major = 0 if hip else torch.cuda.get_device_capability()[0]
    names: dict[str, Any] = {
        "_is_hip": hip,
        "_is_npu": False,
        "_is_cpu_amx_available": False,
        "AttentionArch": SimpleNamespace(MLA="MLA"),
        "is_hopper_with_cuda_12_3": lambda: major == HOPPER,
        "is_sm100_supported": lambda: major == BLACKWELL,
        "is_flashinfer_available": lambda: not hip,
        "logger": LOG,
        "log_info_on_rank0": lambda _logger, text: LOG.info(text),
    }
    assigned = [node for node in (tree.body if tree else []) if isinstance(node, ast.Assign)]
    run([node for node in assigned if isinstance(node.value, ast.List)], file, names)  # the backends it lists
    return names


def _runner(args: Any) -> SimpleNamespace:
    """Stand in for the model runner that is about to load R1."""
    model = SimpleNamespace(
        attention_arch="MLA",
        hf_config=SimpleNamespace(),
        context_len=args.context_length or LONGEST_CONTEXT,
        get_num_kv_heads=lambda tp_size: max(1, KV_HEADS // tp_size),
    )
    return SimpleNamespace(
        server_args=args,
        model_config=model,
        use_mla_backend=True,
        is_multimodal=False,
        tp_size=args.tp_size,
        page_size=getattr(args, "page_size", None) or 1,
        mem_fraction_static=args.mem_fraction_static,
        spec_algorithm=SimpleNamespace(is_none=lambda: args.speculative_algorithm is None),
    )
