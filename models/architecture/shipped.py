"""The shipped checkpoints: hub names with their shapes and formats, and the sizes that are published of them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from models.architecture.config_json import parse_architecture
from models.architecture.shapes import ModelArchitecture

LIST = "configs/checkpoints.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One shipped checkpoint. `published_bytes` is None where no size was found; `source` says where it stands.

    `unit` is the size of the last digit the source gives, in bytes.
    """

    arch: ModelArchitecture
    shapes: str
    published_bytes: int | None = None
    unit: int = 1
    source: str = ""

    @property
    def name(self) -> str:
        return self.arch.name


@cache
def deepseek_r1() -> ModelArchitecture:
    """Return the shipped DeepSeek-R1 671B FP8."""
    return replace(base_model("deepseek-r1"), name="deepseek-ai/DeepSeek-R1")


@cache
def base_model(shapes: str) -> ModelArchitecture:
    """Return a shipped config.json by its name: deepseek-r1, deepseek-v3.2, kimi-k2, kimi-k2-thinking or kimi-k2.5."""
    data = files("models").joinpath(f"configs/{shapes}.json").read_bytes()
    return parse_architecture(data, f"{shapes}.json", shapes)


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """Return all shipped checkpoints, in the order of the list."""
    entries = tomllib.loads(files("models").joinpath(LIST).read_text(encoding="utf-8"))["checkpoint"]
    return tuple(_checkpoint(**entry) for entry in entries)


def checkpoint_named(name: str) -> Checkpoint | None:
    """Return the shipped checkpoint of a hub name, with or without its owner; None for another."""
    hub_name = name.strip().strip("/").lower()
    for each in checkpoints():
        whole = each.name.lower()
        if hub_name in (whole, whole.rpartition("/")[2]):
            return each
    return None


def _checkpoint(
    *, name: str, shapes: str, formats: str | None = None, context: int | None = None, **published: object
) -> Checkpoint:
    arch = replace(base_model(shapes), name=name)
    if formats is not None:
        arch = replace(arch.quantised(None if formats == "bf16" else formats), name=name)
    if context is not None:
        arch = replace(arch, max_position_embeddings=context)
    size, unit = published.get("bytes"), published.get("unit", 1)
    return Checkpoint(
        arch=arch,
        shapes=shapes,
        published_bytes=size if isinstance(size, int) else None,
        unit=unit if isinstance(unit, int) else 1,
        source=str(published.get("source", "")),
    )
