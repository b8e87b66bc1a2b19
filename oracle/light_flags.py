"""Writes the flags of one SGLang release from its wheel alone: what SGLang imports beside itself gets a stand-in.

    python oracle/light_flags.py OUT FOLDER     FOLDER holds an unpacked wheel; OUT/<name of FOLDER>.json is written

Runs in sgtune's own environment: no torch, no transformers, nothing of a GPU. Only the parser is wanted.
"""

from __future__ import annotations

import importlib.machinery
import sys
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu" / "site")]  # PYTHONSAFEPATH keeps them off

from dump_flags import dumped
from loading import in_child
from pretend import Silent
from stand_ins import Finder

# Never asked for the real one: heavy where they are installed, and an old release may not go with today's.
REPLACED = (
    "torch", "torchvision", "torchao", "transformers", "huggingface_hub", "safetensors", "triton", "sgl_kernel",
    "flashinfer", "deep_gemm", "deep_ep", "cutlass", "tilelang", "quack", "vllm", "outlines", "xgrammar", "sgl_fa4",
)  # fmt: skip


class Missing(Finder):
    """Stands in for whatever no other finder has, but SGLang's own modules."""

    def __init__(self) -> None:
        super().__init__((), Silent)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in ("sglang", *sys.stdlib_module_names):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]


def flags_of_wheel(folder: Path) -> str:
    """Return the JSON list of the flags of the release in `folder`. Raises RuntimeError with its own traceback."""
    sys.meta_path.insert(0, Finder(REPLACED, Silent))
    sys.meta_path.append(Missing())
    return in_child(partial(dumped, folder.resolve()))


if __name__ == "__main__":
    out, source = Path(sys.argv[1]), Path(sys.argv[2])
    (out / f"{source.name}.json").write_text(flags_of_wheel(source), encoding="utf-8")
