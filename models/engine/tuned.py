"""Tuned Triton kernels: which releases ship a fused-MoE configuration for a device, and the cost without one.

SGLang looks up tile sizes by device name, experts and shard width. Without a file every batch is multiplied in tiles
of 64 rows, so that each touched expert pays for 64 rows however few it has: free on a GPU with arithmetic to spare,
several times the whole step on one without (H20).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from packaging.version import Version

from hwprobe.files import decode_json
from models.engine.profile import HOPPER

# Rows of a Triton MoE tile at small batches: with a tuned configuration, and SGLang's default without one.
TUNED_ROWS, UNTUNED_ROWS = 16.0, 64.0
# R1's routed experts and the whole width of one; a shared expert may be fused in, once or a copy per TP rank.
EXPERTS, WIDTH = 256, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedKernels:
    """Read from wheels: by device and shape, first and last place in `releases` of every run that has the file."""

    source: str
    releases: tuple[str, ...]
    devices: dict[str, dict[str, tuple[tuple[int, int], ...]]]


@cache
def tuned_kernels() -> TunedKernels:
    """Return what wheels ship (data/tuned_kernels.json, written by tools/read_tuned_kernels.py)."""
    return decode_json(files("models").joinpath("data/tuned_kernels.json").read_bytes(), TunedKernels, "tuned kernels")


@cache
def ships_tuned_moe(version: Version, device: str, tp: int) -> bool:
    """Whether a release has a tuned fused-MoE kernel of R1 for this device at this TP degree (no EP)."""
    tuned = tuned_kernels()
    place = sum(Version(release) <= version for release in tuned.releases) - 1
    shapes = tuned.devices.get(device.replace(" ", "_"), {})
    shapes_run = (f"E={experts},N={WIDTH // tp}" for experts in (EXPERTS, EXPERTS + 1, EXPERTS + tp))
    return any(first <= max(place, 0) <= last for shape in shapes_run for first, last in shapes.get(shape, ()))


def moe_tile_rows(version: Version, family: str, device: str, tp: int) -> float:
    """Return the least rows per touched expert. Blackwell and AMD serve R1 with kernels that are not Triton's."""
    if family != HOPPER or not device.startswith("NVIDIA "):
        return TUNED_ROWS
    return TUNED_ROWS if ships_tuned_moe(version, device, tp) else UNTUNED_ROWS


def first_tuned(device: str, tp: int) -> str | None:
    """Return the first release that ships a tuned MoE kernel for this device and TP degree, if any does."""
    return next((r for r in tuned_kernels().releases if ships_tuned_moe(Version(r), device, tp)), None)
