"""The present state of a running tune, for observers: `live.json` in the run folder.

It is never evidence: replaced at every step without waiting for the disk, marked at the end, ignored on --resume. A
run without it, or with half of it, is only harder to watch.
"""

from __future__ import annotations

import shlex
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import psutil

from models.config import ServerConfig
from tuner.seam import Measurement

LIVE_FILE = "live.json"
# A process is the one that wrote the file if it was born within this many seconds of the time in the file.
BIRTH_TOLERANCE_S = 2.0
# What says where a run is; the first two have a value.
PLACES = ("--runs", "--run", "--resume")


class RunState(StrEnum):
    """`interrupted` by its user, `failed` by an error: both can be resumed."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTrial:
    """A trial that is running; `points` are those measured so far, the prediction is for `asked` clients."""

    number: int
    source: str
    config: ServerConfig
    predicted_tok_s: float
    band_tok_s: tuple[float, float]
    asked: int
    points: tuple[Measurement, ...] = ()
    began_s: float = 0.0
    phase: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """A tune at one moment. Times are seconds since the epoch.

    `trial` is the oldest launch in flight, `beside` are the others. `pid`, `born_s` and `host` name the process;
    `ceiling_tok_s` is what the plan predicts of its best configuration; `budget_s` is None without a budget.
    `command` is what was typed, for a shell, without secrets.
    """

    state: RunState
    phase: str
    phase_began_s: float
    began_s: float
    pid: int
    born_s: float
    host: str
    trials: int
    confirm: int
    ceiling_tok_s: float
    budget_s: float | None = None
    trial: LiveTrial | None = None
    beside: tuple[LiveTrial, ...] = ()
    message: str = ""
    command: str = ""

    @property
    def running(self) -> bool:
        """Whether the tune goes on: its process must still exist, where that can be checked."""
        if self.state is not RunState.RUNNING:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born_s) < BIRTH_TOLERANCE_S
        except psutil.NoSuchProcess:
            return False


def resumed(command: str, run: Path) -> str:
    """Return the command of a tune as typed so that it continues `run`: with --run, --runs and --resume."""
    words = shlex.split(command)
    end = words.index("--") if "--" in words else len(words)
    own, skip = [], False
    for word in words[:end]:
        if not skip and word.partition("=")[0] not in PLACES:
            own.append(word)
        skip = not skip and word in PLACES[:2]
    return shlex.join([*own, "--runs", str(run.parent), "--run", run.name, "--resume", *words[end:]])


def read_live(run: Path) -> LiveState | None:
    """Return a run's live.json, None if it is missing or unreadable."""
    try:
        return msgspec.json.decode((run / LIVE_FILE).read_bytes(), type=LiveState)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None
