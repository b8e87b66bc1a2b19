"""What the half hour runs, in order: parts A, B and C, each of items that are measured and kept one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hwprobe.kernels.report import Step
from hwprobe.measure import DEADLINE_S, PER_GPU


class KitPart(StrEnum):
    """A: does the card work and repeat itself; B: what the measuring does to the figures; C: SGLang's own kernels."""

    A = "A"
    B = "B"
    C = "C"


class On(StrEnum):
    """Which GPUs an item is for: one that is named, the first sound one, or all sound ones together."""

    ONE = "one"
    FIRST = "first"
    ALL = "all"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to run; `name` is that of its files, `place` the GPU of On.ONE, `depths` those of a slice recipe."""

    name: str
    part: KitPart
    title: str
    on: On
    limit_s: float
    step: Step | None = None
    place: int = 0
    quick: bool = False
    served: bool = False
    depths: str | None = None


def half_hour(gpus: int, *, cpu: bool = False) -> tuple[Item, ...]:
    """Return all items for a machine of so many GPUs; with `cpu` those that a processor can stand in for."""
    places = [0] if cpu else list(range(gpus))
    on = On.HOST if cpu else On.ONE
    items = [_of(KitPart.A, "look", Step.DEVICES, on, place) for place in places]
    items += [_of(KitPart.A, "quick", step, on, place, quick=True) for place in places for step in PER_GPU]
    if cpu:
        return (*items, *_on_cpu())
    steps = (*PER_GPU, Step.SUSTAINED)
    items += [_of(KitPart.A, "full", step, On.ONE, place) for place in places for step in steps]
    items += [_of(KitPart.A, "repeat", step, On.FIRST) for step in PER_GPU]
    items += [
        _of(KitPart.B, "ablation", Step.ABLATION, On.FIRST),
        _of(KitPart.B, "drift", Step.MEMORY, On.FIRST, quick=True),
    ]
    if gpus > 1:
        items += [_of(KitPart.B, "together", step, On.ALL) for step in (Step.P2P, Step.ALL_REDUCE, Step.SYMMETRIC)]
    return (*items, *_served())


def _on_cpu() -> list[Item]:
    steps = (Step.SUSTAINED, Step.ABLATION, Step.ALL_REDUCE, Step.DEEP_GEMM, Step.FLASH_MLA)
    parts = (KitPart.A, KitPart.B, KitPart.B, KitPart.C, KitPart.C)
    return [_of(part, "cpu", step, On.HOST, quick=True) for part, step in zip(parts, steps, strict=True)]


def _served() -> list[Item]:
    """Return part C: the kernels that R1 runs, and four of its layers booted."""
    install = Item(
        name="C-install",
        part=KitPart.C,
        title="SGLang beside the machine's torch",
        on=On.FIRST,
        limit_s=500.0,
        depths="",
    )
    kernels = [
        _of(KitPart.C, "served", step, On.FIRST, served=True, limit_s=DEADLINE_S[step])
        for step in (Step.DEEP_GEMM, Step.FLASH_MLA)
    ]
    boot = Item(
        name="C-boot",
        part=KitPart.C,
        title="four layers of R1 booted and measured",
        on=On.FIRST,
        limit_s=570.0,
        depths="4",
    )
    return [install, *kernels, boot]


WORDS = {step: step.name.lower().replace("_", "-") for step in Step}


def _of(part: KitPart, why: str, step: Step, on: On, place: int = 0, **settings: bool | float) -> Item:
    name = f"{part}-{why}-{WORDS[step]}" + (f"-gpu{place}" if on is On.ONE else "")
    where = f"GPU {place}" if on is On.ONE else {On.FIRST: "first GPU", On.ALL: "all GPUs", On.HOST: "host"}[on]
    return Item(
        name=name,
        part=part,
        title=f"{where}: {step} ({why})",
        on=on,
        step=step,
        place=place,
        quick=bool(settings.get("quick", False)),
        served=bool(settings.get("served", False)),
        limit_s=float(settings.get("limit_s", DEADLINE_S[step])),
    )


def of_part(items: Sequence[Item], part: KitPart) -> list[Item]:
    """Return the items of one part, in order."""
    return [item for item in items if item.part is part]
