"""Lets SGLang's argument code run on a machine without a GPU: kernel packages replaced, one GPU pretended.

Runs inside the environment that `environment.py` builds, never in sgtune's own. Only what SGLang asks the
machine is replaced (compute capability, memory, device count); its parser, resolver and checks are its own.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.append(str(Path(__file__).resolve().parent.parent / "sglang_cpu" / "site"))

from stand_ins import Finder, StandIn, declare_torchvision

# Compiled for a GPU, or only needed once a model runs. None of them decides an argument.
KERNELS = ("sgl_kernel", "flashinfer", "deep_gemm", "deep_ep", "triton", "quack", "cutlass", "tilelang")


class Open(type):
    """The type of stand-ins for classes: their members are there, whatever they are called."""

    def __add__(cls, other: Any) -> Any:  # lists of names that modules of AMD put together
        return other

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{cls.__name__}.{name}")


class Silent(StandIn):
    """Answers anything: the oracle imports more of SGLang than a server on a CPU does."""

    kind_of_types = Open

    def attribute(self, name: str) -> Any:
        return MagicMock(name=f"{self.__name__}.{name}")


def replace_kernels() -> None:
    """Put stand-ins before the kernel packages. Once a process."""
    replace_modules(*KERNELS)
    declare_torchvision()


def replace_modules(*names: str) -> None:
    """Put stand-ins before these modules and all below them."""
    sys.meta_path.insert(0, Finder(names, Silent))


def pretend_gpu(name: str, memory_mib: float, capability: tuple[int, int]) -> None:
    """Make torch and SGLang's probes answer as a node of eight of these GPUs would. Before importing sglang."""
    import torch

    class Properties:
        major, minor = capability
        total_memory = int(memory_mib) << 20
        multi_processor_count = 132

    Properties.name = name  # type: ignore[attr-defined]
    amd = name.startswith("AMD")
    torch.version.cuda, torch.version.hip = (None, "6.3") if amd else ("13.0", None)
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
    for module in _modules_with_probes():
        module.get_nvgpu_memory_capacity = module.get_amdgpu_memory_capacity = lambda: float(memory_mib)
        module.is_flashinfer_available = lambda: not amd


def _modules_with_probes() -> list[Any]:
    """Return where the release keeps what it asks the machine, and where it has imported that to.

    `utils` was a module before it became a package around `common`; early releases import the probes by name.
    """
    utils = importlib.import_module("sglang.srt.utils")
    common = [importlib.import_module("sglang.srt.utils.common")] if hasattr(utils, "__path__") else []
    importers = [sys.modules[name] for name in ("sglang.srt.server_args",) if name in sys.modules]
    return [utils, *common, *importers]
