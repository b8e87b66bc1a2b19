"""`sgtune models`: the checkpoints that are known by name, what they weigh and where they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.common import completion, options
from tuner.cli.common.terminal import console, print_json, start_fast

if TYPE_CHECKING:
    from packaging.version import Version

    from models.architecture.shipped import Checkpoint

EXAMPLE = "Example: sgtune models cognitivecomputations/DeepSeek-R1-AWQ"

Name = Annotated[
    str | None,
    typer.Argument(help="A checkpoint's hub name, or a part of one; default: all of them.", show_default=False),
]
ModelsVersion = Annotated[
    str | None,
    typer.Option(
        "--sglang-version",
        autocompletion=completion.sglang_version,
        help="SGLang release; default: the newest known.",
    ),
]


def models(name: Name = None, sglang_version: ModelsVersion = None, json: options.Json = False) -> None:
    """List the checkpoints that are known by name: what they weigh, and the machines that hold them."""
    start_fast()
    from hwprobe.errors import InputError
    from models.architecture.shipped import checkpoints
    from models.version import NEWEST, parse_version
    from tuner.cli.views.models_view import show_models

    version = parse_version(sglang_version or NEWEST)
    part = (name or "").strip().strip("/").lower()
    matching = [each for each in checkpoints() if part in each.name.lower()]
    exact = [each for each in matching if part in (each.name.lower(), each.name.lower().rpartition("/")[2])]
    if not matching:
        raise InputError(
            f"no shipped checkpoint is called '{part[:100]}'; `sgtune models` lists them, and any config.json of the "
            "family is read with --model"
        )
    documents = [_document(each, version) for each in exact or matching]
    if json:
        print_json({"sglang_version": str(version), "checkpoints": documents})
    else:
        show_models(documents, str(version), console())


def _document(checkpoint: Checkpoint, version: Version) -> dict[str, Any]:
    from models.architecture.stored import stored_bytes
    from planner.plans.smallest import runs_on, tp8_weights_gib

    arch = checkpoint.arch
    return {
        "name": checkpoint.name,
        "weights": arch.weights,
        "quant_method": arch.weight_formats.method,
        "attention": "sparse" if arch.is_sparse else "dense",
        "draft_layer": arch.has_mtp and not arch.weight_formats.without_draft,
        "parameters": arch.total_params,
        "bytes": stored_bytes(arch),
        "published_bytes": checkpoint.published_bytes,
        "published_unit_bytes": checkpoint.unit,
        "source": checkpoint.source or None,
        "weights_gib_per_gpu_tp8": tp8_weights_gib(arch, version),
        "kv_bytes_per_token": {"bfloat16": arch.kv_bytes_per_token(2.0), "fp8": arch.kv_bytes_per_token(1.0)},
        "runs_on": list(runs_on(arch, version)),
    }
