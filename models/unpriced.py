"""Unpriced: a flag of a launch that no equation has, and its likely effect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """`flag` as SGLang spells it, `value` as given, `changes`: "memory", "speed" or "memory and speed"."""

    flag: str
    value: object
    changes: str
    effect: str

    @property
    def moves_memory(self) -> bool:
        return "memory" in self.changes

    @property
    def moves_speed(self) -> bool:
        return "speed" in self.changes

    @property
    def written(self) -> str:
        """The flag and its value as they are typed; a switch alone."""
        return self.flag if self.value is True else f"{self.flag} {self.value}"

    def as_dict(self) -> dict[str, object]:
        return {"flag": self.flag, "value": self.value, "changes": self.changes, "effect": self.effect}
