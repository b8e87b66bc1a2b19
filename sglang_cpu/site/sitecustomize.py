"""Loaded by every interpreter on whose PYTHONPATH this folder stands: SGLang starts its workers as fresh ones.

Two packages SGLang imports do not load beside a CPU build of torch; nothing of them is ever called there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any, ClassVar

TYPE_NAMES = ("constexpr", "tensor", "dtype")


class TorchvisionOperators:
    """PyPI's torchvision is built for CUDA: its library does not load, and its import then registers
    kernels for operators nobody declared. Declares them when torchvision is first looked for."""

    library: ClassVar[Any] = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import torch

        if torch.version.cuda is None:
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            TorchvisionOperators.library = library  # the operators live as long as this does


class Stub(types.ModuleType):
    """A module whose attributes are stubs too: enough to import and to decorate with."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[:1].isupper() or name in TYPE_NAMES:
            value: Any = type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        else:
            value = importlib.import_module(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else (lambda made: made)


class Triton:
    """Triton compiles for GPUs and weighs 690 MiB; SGLang's torch_native backend launches none of its kernels."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "triton" or name.startswith("triton."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> Stub:
        return Stub(spec.name)

    def exec_module(self, module: Any) -> None:
        if module.__name__ == "triton":
            module.__version__ = "3.0.0"
            module.cdiv = lambda a, b: -(a // -b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1


sys.meta_path.insert(0, TorchvisionOperators())  # type: ignore[arg-type]
if importlib.util.find_spec("triton") is None:
    sys.meta_path.append(Triton())  # type: ignore[arg-type]
