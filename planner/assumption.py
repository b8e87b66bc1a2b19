"""What an answer rests on without being known: values that were taken, and values that must be asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Assumption:
    """A value that was taken: of a variable, a flag or the model, and why this one."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownValue:
    """A value that decides the answer and is not known here: the flag it belongs to and the text that stands for it."""

    flag: str
    text: str
