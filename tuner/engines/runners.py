"""How a launch becomes a process: an interpreter with sglang, a container image, or our own emulated server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

CONTAINER_PORTS = ("--network", "host")
CONTAINER_CACHE = "/sglang-cache"
SHM = "32g"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start, with what environment, and the cleanup command that always runs."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()


class Runner(Protocol):
    """Turns SGLang's flags into a command of this machine."""

    @property
    def name(self) -> str:
        """Return what `--engine` calls it."""

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        """Return the command of trial `number`; `nonce` names this launch and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRunner:
    """An interpreter that can import sglang; `cwd` is where it starts (None: where sgtune did)."""

    python: str = "python3"
    name: str = "local"
    cwd: Path | None = None

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        moved = () if self.cwd is None else ("env", f"--chdir={self.cwd}")
        words = (*moved, self.python, "-m", "sglang.launch_server", *flags)
        return Command(words=words, environment=environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerRunner:
    """A container per launch, named after it. Killing docker's client leaves the container: `after` removes it.

    It sees `cache`, if any, and the model's folder `mounted` (by default the model path, where that is a folder).
    """

    image: str
    model_path: str
    docker: str = "docker"
    cache: Path | None = Path("~/.cache/sglang")
    mounted: str | None = None
    name: str = "docker"

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        # compiled kernels outlive the container, whoever its user is
        mounts = []
        if self.cache is not None:
            mounts = ["-v", f"{self.cache.expanduser()}:{CONTAINER_CACHE}", "-e", f"SGLANG_CACHE_DIR={CONTAINER_CACHE}"]
        folder = self.mounted or (self.model_path if self.model_path.startswith("/") else None)
        if folder is not None:
            mounts += ["-v", f"{folder}:{folder}:ro"]
        settings = [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        words = (
            self.docker, "run", "--rm", "--name", nonce, "--label", "sgtune=1", "--gpus", "all", "--shm-size", SHM,
            *CONTAINER_PORTS, *mounts, *settings, self.image, "python3", "-m", "sglang.launch_server", *flags,
        )  # fmt: skip
        return Command(words=words, after=(self.docker, "rm", "--force", nonce))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedRunner:
    """sgtune's own server process, in a world; `options` are those of `python -m tuner.emulator`."""

    options: tuple[str, ...]
    name: str = "emulated"

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        words = (sys.executable, "-m", "tuner.emulator", *self.options, "--launch", str(number), "--", *flags)
        return Command(words=words, environment={**environment, "PYTHONSAFEPATH": "1"})
