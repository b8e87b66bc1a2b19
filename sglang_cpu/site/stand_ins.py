"""Stand-ins for packages that SGLang imports and that do not load beside a CPU build of torch.

Used by the server on a CPU (sitecustomize) and by the oracle, each of which calls nothing of them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import types
from typing import Any, ClassVar

TYPE_NAMES = ("constexpr", "tensor", "dtype")


class StandIn(types.ModuleType):
    """A module whose attributes are stand-ins too: enough to import and to decorate with."""

    __path__: ClassVar[list[str]] = []
    __version__ = "99.0"
    kind_of_types: ClassVar[type] = type

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[:1].isupper() or name in TYPE_NAMES:
            value: Any = self.kind_of_types(name, (), {"__init__": lambda self, *args, **kwargs: None})
        else:
            value = self.attribute(name)
        setattr(self, name, value)
        return value

    def attribute(self, name: str) -> Any:
        """Return what stands in for a function, a value or a module of this name."""
        return importlib.import_module(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else (lambda decorated: decorated)


class Finder:
    """Finds a stand-in for the named packages and everything below them."""

    def __init__(self, names: tuple[str, ...], kind: type[StandIn] = StandIn) -> None:
        self.names, self.kind = names, kind

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == module or name.startswith(module + ".") for module in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> StandIn:
        return self.kind(spec.name)

    def exec_module(self, module: Any) -> None:
        if module.__name__ == "triton":
            module.cdiv = lambda a, b: -(a // -b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1
            module.__version__ = "3.0.0"


def declare_torchvision() -> None:
    """Declare the operators torchvision's compiled half would register: PyPI's build is for CUDA and does not load."""
    import torch

    # kept alive: the operators go with their declaration
    declare_torchvision.operators = operators = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
