"""What the surroundings of a launch file decide, and what the file says of its origin."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from packaging.version import Version

from hwprobe.errors import InputError
from models.version import at_least
from planner.launch import DEFAULT_MODEL_PATH, LaunchSpec
from planner.launch_files.production import Production
from planner.launch_files.record import Record

CACHE_IN_CONTAINER = "/sglang-cache"
HUB_IN_CONTAINER = "/huggingface"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# What a start may take where none was measured: loading 671B parameters from a network disk, compiling kernels.
LONGEST_BOOT_S = 3600.0
BOOT_MARGIN = 3.0
LEAST_BOOT_S = 300.0
# 690 GB at 100 MB/s: what a first start from the hub takes before it loads anything.
DOWNLOAD_S = 7200.0
# The first release whose /ready was seen; before it, only a generated token proves that a server is ready.
READY = "0.5.23"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an exported file comes from: (name, value) lines, one per fact, and the same as data for `verify`."""

    lines: tuple[tuple[str, str], ...]
    record: Record | None = None

    @property
    def simulated(self) -> bool:
        """Whether the figures come from a world that was played, not from a machine."""
        return self.record is not None and self.record.simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the surroundings decide. Volumes are a folder of the host, or a plain name.

    A name is a docker volume; on Kubernetes it is the folder /var/lib/sglang/NAME of the node. `boot_s` is the
    longest start measured, in seconds; `replicas` the servers that a load needs.
    """

    model_path: str = DEFAULT_MODEL_PATH
    host: str = "127.0.0.1"
    port: int = 30000
    image: str | None = None
    python: str = "python3"
    shm_gib: int = 32
    weights: str | None = None
    cache: str = "sglang-cache"
    boot_s: float | None = None
    replicas: int = 1
    production: Production = field(default_factory=Production)

    def checked(self) -> Parameters:
        """Raise InputError naming the flag whose value no file could hold; return the parameters otherwise."""
        for flag, value in (("--model-path", self.model_path), ("--host", self.host), ("--python", self.python)):
            _check_text(flag, value)
        if self.image is not None and (not re.fullmatch(r"[A-Za-z0-9][\w./:@-]*", self.image, re.ASCII)):
            raise InputError(f"--image is {self.image!r}; write it as in --image lmsysorg/sglang:v0.5.23")
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port is {self.port}; it must be between 1 and 65535")
        if not 1 <= self.shm_gib <= 4096:
            raise InputError(f"--shm-gib is {self.shm_gib}; it must be between 1 and 4096")
        for flag, volume in (("--weights-volume", self.weights), ("--cache-volume", self.cache)):
            if volume is not None:
                _check_volume(flag, volume)
        self.production.checked()
        return self

    def image_of(self, version: Version) -> str:
        """Return the image: the one given, or SGLang's own of that release."""
        return self.image or f"lmsysorg/sglang:v{version}"

    @property
    def hub_model(self) -> bool:
        """Whether the model path is a name that SGLang looks up, not a folder."""
        return not self.model_path.startswith("/")

    @property
    def weights_source(self) -> str:
        """Return the volume that holds the weights, or the hub's downloads."""
        return self.weights or ("sglang-huggingface" if self.hub_model else self.model_path)

    @property
    def weights_target(self) -> str:
        """Return where the container sees the weights."""
        return HUB_IN_CONTAINER if self.hub_model else self.model_path

    @property
    def startup_s(self) -> int:
        """Return how long a start may take before it counts as failed: three times the longest measured.

        Where the weights come from the hub, the first one downloads them.
        """
        boot_s = LONGEST_BOOT_S if self.boot_s is None else max(LEAST_BOOT_S, BOOT_MARGIN * self.boot_s)
        return round(boot_s + (DOWNLOAD_S if self.hub_model else 0.0))


def _check_text(flag: str, value: str) -> None:
    if not value or value.startswith("-") or "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InputError(
            f"{flag} is {value!r}; it must not be empty, begin with '-', or hold bytes that are not UTF-8 text"
        )


def _check_volume(flag: str, volume: str) -> None:
    _check_text(flag, volume)
    if not NAME.fullmatch(volume) and not volume.startswith("/"):
        raise InputError(f"{flag} is {volume!r}; give an absolute folder (/data/models) or a plain volume name")


def ready_path(spec: LaunchSpec, *, key: bool = False) -> str:
    """Return what a start waits for: other nodes than the first, and those without the key, get /health_generate."""
    return "/ready" if at_least(spec.version, READY) and spec.nnodes == 1 and not key else "/health_generate"
