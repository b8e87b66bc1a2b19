"""Before the first launch: what would make every launch fail alike is found in seconds, not after hours of boots."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import InvalidVersion, Version

from hwprobe.errors import InputError
from hwprobe.inventory.nvml import Inventory, read_inventory
from tuner.server.gate import LEAST_SHM_MIB
from tuner.server.ports import candidates, is_free

# Importing sglang from a cold network disk takes a minute.
ASK_S = 180.0
ASK = "import sglang, importlib.metadata as m; print(); print(m.version('sglang'))"
MIB = 2**20

Ask = Callable[[str], tuple[int, str]]


def ask_python(python: str) -> tuple[int, str]:
    """Import sglang in an interpreter; return its exit code and its last line."""
    try:
        process = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=ASK_S, check=False)
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {ASK_S:.0f} s"
    lines = (process.stdout if process.returncode == 0 else process.stdout + process.stderr).strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What launches need: an interpreter with that release (None: a container has its own), GPUs, weights, room.

    `image` returns what is wrong with a container's image, as sentences.
    """

    python: str | None
    version: Version
    gpus: int
    model_path: str
    flags: Sequence[str] = ()
    ask: Ask = ask_python
    inventory: Callable[[], Inventory] = read_inventory
    shm: Path = field(default=Path("/dev/shm"))
    image: Callable[[], list[str]] = list

    def check(self) -> None:
        """Raise InputError naming everything that would make launches fail alike, each with its remedy."""
        runtime = [*self._python(), *self.image()]
        problems = [*runtime, *self._gpus(), *self._weights(), *self._ports(), *self._shared_memory()]
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise InputError(f"no launch could succeed here; nothing was started:{listed}")

    def _python(self) -> list[str]:
        if self.python is None:
            return []
        code, answer = self.ask(self.python)
        if code:
            return [f"'{self.python}' cannot import sglang ({answer}): name the interpreter that can with --python"]
        try:
            its_version = Version(answer)
        except InvalidVersion:
            return []  # a build that names itself otherwise: its flags decide
        if its_version.release[:3] != self.version.release[:3]:
            return [
                f"'{self.python}' has SGLang {its_version}, the question is for {self.version}: ask with "
                f"--sglang-version {its_version.base_version}, or name another interpreter with --python"
            ]
        return []

    def _gpus(self) -> list[str]:
        if "--device" in self.flags and "cpu" in self.flags:
            return []
        inventory = self.inventory()
        if len(inventory.gpus) >= self.gpus:
            return []
        why = f" ({inventory.absent})" if inventory.absent else ""
        return [
            f"{len(inventory.gpus)} GPUs are seen here{why}, --hardware has {self.gpus}: check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or name this machine with --hardware"
        ]

    def _weights(self) -> list[str]:
        """Look into a folder; a hub name is downloaded by SGLang."""
        if not self.model_path.startswith(("/", "./", "~")):
            return []
        folder = Path(self.model_path).expanduser()
        if not (folder / "config.json").is_file():
            return [f"'{self.model_path}' holds no config.json: name the folder of the weights with --model-path"]
        if "dummy" not in self.flags and not any(folder.glob("*.safetensors")):
            return [f"'{self.model_path}' holds no *.safetensors: the download is not complete"]
        return []

    def _ports(self) -> list[str]:
        ports = candidates()
        if any(is_free(port) for port in ports):
            return []
        return [f"no port is free from {ports.start} to {ports.stop - 1}: SGTUNE_PORTS=FIRST-LAST names others"]

    def _shared_memory(self) -> list[str]:
        if self.python is None or not self.shm.is_dir():
            return []  # a container brings its own
        free_mib = shutil.disk_usage(self.shm).free / MIB
        if free_mib >= LEAST_SHM_MIB:
            return []
        return [
            f"{self.shm} has {free_mib:.0f} MiB free, NCCL takes {LEAST_SHM_MIB:.0f}: free some, or give the container "
            "more (--shm-size 32g)"
        ]
