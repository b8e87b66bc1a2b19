"""Loaded by every interpreter on whose PYTHONPATH this folder stands: SGLang starts its workers as fresh ones."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from stand_ins import Finder, declare_torchvision


class Torchvision:
    """Declares torchvision's operators when it is first looked for, so that other programs need not load torch."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import torch

        if torch.version.cuda is None:
            declare_torchvision()


sys.meta_path.insert(0, Torchvision())  # type: ignore[arg-type]
# Triton compiles for GPUs and weighs 690 MiB; SGLang's torch_native backend launches none of its kernels.
if importlib.util.find_spec("triton") is None:
    sys.meta_path.append(Finder(("triton",)))  # type: ignore[arg-type]
# SGLang's benchmark imports it at the top, and uses it only to download data sets.
if importlib.util.find_spec("datasets") is None:
    sys.meta_path.append(Finder(("datasets",)))  # type: ignore[arg-type]
