"""Faults a world may inject into the emulated server, so that every way a launch can go wrong can be tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    """Kinds of faults. Those of the start come at `phase`; those of serving after `requests` requests."""

    EXIT = "exit"  # print `text`, exit with `code` (a negative one is a signal to itself)
    HANG = "hang"  # print `text`, then no further progress, for ever
    FREEZE = "freeze"  # SIGSTOP to itself: not even the sockets answer
    FLOOD = "flood"  # print `count` MiB of log at once
    IGNORE_SIGTERM = "ignore_sigterm"
    ESCAPE = "escape"  # a child in a session of its own
    HOLD_STDOUT = "hold_stdout"  # a double-forked grandchild keeps the output open
    PORT_TAKEN = "port_taken"  # SGLang's message, exit code 1
    KILL_SCHEDULER = "kill_scheduler"  # the scheduler process dies by SIGKILL
    MUTE = "mute"  # serving: healthy, but no token any more
    SLOW = "slow"  # serving: every step takes `factor` as long
    ERRORS = "errors"  # serving: every `count`-th request gets HTTP 500
    SHORT = "short"  # serving: every answer lacks `count` tokens
    OOM = "oom"  # serving: out of memory when `count` requests run at once


PHASES = ("import", "distributed", "weights", "kv pool", "graphs", "warm-up", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    `launches` restricts it to trials of these numbers, `rank` to one of a server over several nodes, `server` to one of
    a deployment, by its name ("prefill-0").
    """

    kind: FaultKind
    phase: str = "serving"
    requests: int = 0
    count: int = 1
    code: int = 1
    factor: float = 2.0
    text: str = ""
    launches: tuple[int, ...] = field(default_factory=tuple)
    rank: int | None = None
    server: str | None = None

    def meant_for(self, launch: int, rank: int, server: str = "") -> bool:
        """Say whether it happens to this rank of this launch, or of this server of it."""
        matches = self.rank in (None, rank) and self.server in (None, server)
        return matches and (not self.launches or launch in self.launches)
