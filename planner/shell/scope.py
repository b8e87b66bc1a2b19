"""Scope: a launch file's variables, those of its caller, and the values assumed for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.assumption import Assumption
from planner.shell.syntax import Block
from planner.shell.values import Text, unknown

Value = Text | list[Text]
# Variables that launchers set on every node; the first node's command is judged.
RANKS = frozenset({
    "LWS_WORKER_INDEX", "SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID", "SKYPILOT_NODE_RANK", "NODE_RANK", "RANK",
    "OME_INSTANCE_POD_RANK", "JOB_COMPLETION_INDEX", "MACHINE_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "GROUP_RANK",
    "POD_INDEX", "NODE_INDEX", "node_rank", "NODERANK", "VC_TASK_INDEX", "GROVE_PCLQ_POD_INDEX",
})  # fmt: skip


@dataclass(kw_only=True)
class Scope:
    """Variables by name. `given` are those of --set, `caller` the caller's environment, `ranks` the first node's.

    `positional` is None for a script's own arguments, which are not known; `used` the given names that were read;
    `doubts` the unset variables that a condition took as empty, as a shell does.
    """

    variables: dict[str, Value] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    caller: Mapping[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    functions: dict[str, Block] = field(default_factory=dict)
    positional: list[Text] | None = None
    used: set[str] = field(default_factory=set)
    doubts: dict[str, Assumption] = field(default_factory=dict)

    def copy(self) -> Scope:
        """Return a scope of its own with the same contents; what was used stays common."""
        return Scope(
            variables=dict(self.variables),
            given=self.given,
            caller=self.caller,
            exported=set(self.exported),
            functions=self.functions,
            positional=None if self.positional is None else list(self.positional),
            used=self.used,
            doubts=dict(self.doubts),
        )

    def look(self, name: str) -> Value | None:
        """Return a variable's value: the file's own, else of --set, else the caller's; None where it is set nowhere."""
        own = self.variables.get(name)
        if own is not None and (isinstance(own, list) or own.known or name not in self.given):
            return own
        if name in self.given:
            self.used.add(name)
            return Text(self.given[name])
        if name in self.caller:
            return Text(self.caller[name]).taking(
                Assumption(name=name, value=self.caller[name], why="the environment of this command")
            )
        if name in RANKS:
            return Text("0").taking(Assumption(name=name, value="0", why="the first node's command is judged"))
        return None

    def doubt(self, name: str) -> None:
        """Remember that a condition took a variable for empty because it is set nowhere."""
        why = "set nowhere in the file: a condition takes it for empty, as a shell does"
        self.doubts[name] = Assumption(name=name, value="", why=why)

    def argument(self, number: int) -> Text:
        """Return `$1`, `$2`, ...: a function's own, unknown for a script's."""
        if number == 0:
            return Text("script")
        if self.positional is None:
            return unknown(f"${number}")
        return self.positional[number - 1] if number <= len(self.positional) else Text("")

    def environment(self) -> dict[str, str]:
        """Return the commands' environment as far as it is known."""
        exported = {name: self.variables.get(name) for name in self.exported}
        return {name: value.raw for name, value in exported.items() if isinstance(value, Text) and value.known}
