"""Lets SGLang's argument code run on a machine without a GPU: kernel packages replaced, one GPU pretended.

Runs inside the environment that `environment.py` builds, never in sgtune's own. Only what SGLang asks the
machine is replaced (compute capability, memory, device count); its parser, resolver and checks are its own.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any, ClassVar
from unittest.mock import MagicMock

# Compiled for a GPU, or only needed once a model runs. None of them decides an argument.
KERNELS = ("sgl_kernel", "flashinfer", "deep_gemm", "deep_ep", "triton", "quack", "cutlass", "tilelang")
TYPE_NAMES = ("constexpr", "tensor", "dtype")


class StandIn(types.ModuleType):
    """A module whose attributes are stand-ins too: enough to import and decorate with."""

    __path__: ClassVar[list[str]] = []
    __version__ = "99.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value: Any = MagicMock(name=f"{self.__name__}.{name}")
        if name[:1].isupper() or name in TYPE_NAMES:
            value = type(name, (), {"__init__": lambda self, *a, **k: None})
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else (lambda made: made)


class Finder:
    """Finds a stand-in for the named packages and everything below them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == known or name.startswith(known + ".") for known in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: StandIn) -> None:
        if module.__name__ == "triton":
            module.cdiv = lambda a, b: -(a // -b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1
            module.__version__ = "3.0.0"


def replace_kernels(*more: str) -> None:
    """Put stand-ins before the kernel packages, and before the modules named in `more`."""
    sys.meta_path.insert(0, Finder((*KERNELS, *more)))
    import torch

    # torchvision's compiled half does not load beside a CPU torch: declare the operators it would register.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    replace_kernels.operators = library  # type: ignore[attr-defined]  # kept alive: the operators go with it


def pretend_gpu(name: str, memory_mib: float, capability: tuple[int, int]) -> None:
    """Make torch and SGLang's probes answer as a node of eight of these GPUs would. Before importing sglang."""
    import torch

    class Properties:
        major, minor = capability
        total_memory = int(memory_mib) << 20
        multi_processor_count = 132

    Properties.name = name  # type: ignore[attr-defined]
    torch.version.cuda = "13.0"
    for probe, answer in {
        "is_available": True,
        "device_count": 8,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": name,
        "get_device_properties": Properties,
        "mem_get_info": (Properties.total_memory, Properties.total_memory),
    }.items():
        setattr(torch.cuda, probe, lambda *args, _answer=answer, **kwargs: _answer)
    from sglang.srt.utils import common

    common.get_nvgpu_memory_capacity = lambda: float(memory_mib)
    common.is_flashinfer_available = lambda: True
