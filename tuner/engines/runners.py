"""How a launch becomes a process: an interpreter with sglang, a container image, or our own emulated server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from planner.launch_files.parameters import HUB_IN_CONTAINER
from tuner.engines.containers import CLIENT_EXITS, Containers

CONTAINER_PORTS = ("--network", "host")
CONTAINER_CACHE = "/sglang-cache"
SHM = "32g"
# What a download from the hub may need, passed on by name: docker takes the values from its own environment.
HUB_SETTINGS = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start, with what environment, the cleanup command that always runs, and the exit codes of the program
    that runs the server, which are not the server's."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    client_exits: frozenset[int] = frozenset()


class Runner(Protocol):
    """Turns SGLang's flags into a command of this machine."""

    @property
    def name(self) -> str:
        """Return what `--engine` calls it."""

    @property
    def containers(self) -> Containers | None:
        """Return the containers of this run, None where commands are plain processes."""

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        """Return the command of trial `number`; `nonce` names this launch and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRunner:
    """An interpreter that can import sglang; `cwd` is where it starts (None: where sgtune did).

    `cores` are the CPU cores it may run on (none: all of them).
    """

    python: str = "python3"
    name: str = "local"
    cwd: Path | None = None
    cores: tuple[int, ...] = ()
    containers: None = None

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        moved = () if self.cwd is None else ("env", f"--chdir={self.cwd}")
        bound = ("taskset", "--cpu-list", ",".join(map(str, self.cores))) if self.cores else ()
        words = (*bound, *moved, self.python, "-m", "sglang.launch_server", *flags)
        return Command(words=words, environment=environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerRunner:
    """A container per launch, named after it. Killing docker's client leaves the container: its ending removes it.

    It sees `cache`, if any, and the model's folder `mounted` (by default the model path, where that is a folder); of a
    model that the hub has, this user's downloads `hub`, with HF_TOKEN and its like. `options` are further words of
    `docker run`.
    """

    image: str
    model_path: str
    docker: str = "docker"
    cache: Path | None = Path("~/.cache/sglang")
    mounted: str | None = None
    hub: Path | None = None
    options: tuple[str, ...] = ("--shm-size", SHM)
    name: str = "docker"
    containers: Containers = field(default_factory=Containers)

    def __post_init__(self) -> None:
        object.__setattr__(self, "containers", replace(self.containers, docker=self.docker))

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        settings = [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        words = (
            self.docker, "run", "--rm", "--name", nonce, *self.containers.labels, "--gpus", "all", *self.options,
            *CONTAINER_PORTS, *self._mounts(), *settings, self.image, "python3", "-m", "sglang.launch_server", *flags,
        )  # fmt: skip
        return Command(words=words, after=(self.docker, "rm", "--force", nonce), client_exits=CLIENT_EXITS)

    def _mounts(self) -> list[str]:
        mounts = []
        if self.cache is not None:  # compiled kernels outlive the container, whoever its user is
            mounts = ["-v", f"{self.cache.expanduser()}:{CONTAINER_CACHE}", "-e", f"SGLANG_CACHE_DIR={CONTAINER_CACHE}"]
        folder = self.mounted or (self.model_path if self.model_path.startswith("/") else None)
        if folder is not None:
            mounts += ["-v", f"{folder}:{folder}:ro"]
        elif self.hub is not None:  # 690 GB are downloaded once, not at every launch
            mounts += ["-v", f"{self.hub}:{HUB_IN_CONTAINER}", "-e", f"HF_HUB_CACHE={HUB_IN_CONTAINER}"]
            mounts += [word for name in HUB_SETTINGS for word in ("-e", name)]
        return mounts


def hub_folder() -> Path:
    """Return where this user's downloads from the hub lie, as huggingface_hub finds it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser().absolute()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedRunner:
    """sgtune's own server process, in a world; `options` are those of `python -m tuner.emulator`."""

    options: tuple[str, ...]
    name: str = "emulated"
    containers: None = None

    def command(self, flags: Sequence[str], environment: dict[str, str], nonce: str, number: int) -> Command:
        words = (sys.executable, "-m", "tuner.emulator", *self.options, "--launch", str(number), "--", *flags)
        return Command(words=words, environment={**environment, "PYTHONSAFEPATH": "1"})
