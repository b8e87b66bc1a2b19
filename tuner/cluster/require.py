"""The door to the one module that imports ray: opened when a command names a cluster."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

from hwprobe.errors import InputError


def require_ray() -> ModuleType:
    """Return `tuner.cluster.ray_pool`. Raises InputError where Ray is not installed."""
    if find_spec("ray") is None:
        raise InputError("--cluster needs ray: in the checkout, pip install -e '.[cluster]'")
    from tuner.cluster import ray_pool

    return ray_pool
