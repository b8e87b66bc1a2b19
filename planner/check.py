"""Check: what SGLang makes of a launch line on a machine: violations, resolved values, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from planner.arguments import Arguments, read_arguments
from planner.dialects import from_values
from planner.resolver import Resolved, resolve
from planner.rules import Question, violations
from planner.violation import Violation, sorted_violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One launch line, read, resolved and judged. `accepted`: SGLang's own parser and checks let it start."""

    arguments: Arguments
    typed: ServerConfig
    resolved: Resolved
    violations: tuple[Violation, ...]

    @property
    def accepted(self) -> bool:
        return not any(violation.refused for violation in self.violations)


def check_arguments(words: Sequence[str], arch: ModelArchitecture, machine: Machine, version: Version) -> Checked:
    """Check the words that follow `python -m sglang.launch_server`."""
    arguments = read_arguments(words, version)
    typed = from_values(arguments.values, version)
    resolved = resolve(typed, arch, machine, version)
    question = Question(config=resolved.config, arch=arch, machine=machine, version=version, typed=typed)
    found = sorted_violations([*arguments.faults, *violations(question)])
    return Checked(arguments=arguments, typed=typed, resolved=resolved, violations=tuple(found))
