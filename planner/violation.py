"""Violation: one thing wrong with a launch, in plain words, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """`error`: SGLang refuses or fails; `warning`: it runs, but worse than it could; `note`: SGLang changes it."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A broken rule. `refused`: SGLang itself stops at start, before it touches a GPU."""

    rule: str
    severity: Severity
    message: str
    fix: str
    refused: bool = False


_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def sorted_violations(violations: list[Violation]) -> list[Violation]:
    """Return them worst first: what SGLang refuses, then what fails, then the rest."""
    return sorted(violations, key=lambda v: (_ORDER[v.severity], not v.refused))
