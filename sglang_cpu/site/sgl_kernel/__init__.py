"""Stands in for SGLang's compiled CPU kernels, which need AMX and are on no registry.

SGLang imports some `*_cpu` names when it starts, for speculative decoding and KV moves; every other kernel is
looked up in torch.ops.sgl_kernel and has a torch fallback. Importable, never callable.
"""

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name}: there are no compiled CPU kernels here")

    return missing
