"""Peers: other tools, each installed from the package registry into an environment of its own under .peers/.

Nothing of sgtune depends on them. An environment is made when a benchmark first needs it and kept for the next run;
`rm -r .peers` removes them all.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".peers"
MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A tool of the field, pinned."""

    name: str
    version: str

    @property
    def home(self) -> Path:
        return HOME / self.name

    def command(self) -> str:
        """Return the path of its command, installed first where it is missing. Raises CalledProcessError."""
        place = self.home / "bin" / self.name
        if not place.exists():
            say(f"installing {self.name} {self.version} into .peers/{self.name} (once, minutes)")
            began = time.monotonic()
            venv.create(self.home, with_pip=True, symlinks=True, clear=True)
            pip = [str(self.home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            subprocess.run([*pip, f"{self.name}=={self.version}"], check=True, stderr=subprocess.DEVNULL)
            say(f"installed in {time.monotonic() - began:.0f} s")
        say(f"{self.name} {self.version}: {disk_mb(self.home):,.0f} MB installed")
        return str(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that has ended: its exit code, output, wall-clock and CPU seconds (its descendants' with it)."""

    code: int
    out: str
    wall_s: float
    cpu_s: float


def run(words: Sequence[str], cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end, as a user's shell would."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.run(
        list(words), cwd=cwd, env=environment or kept_bytecode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(code=process.returncode, out=process.stdout, wall_s=wall, cpu_s=cpu)


def kept_bytecode() -> dict[str, str]:
    """Return the environment without the variable that keeps Python from storing what it has compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def sgtune() -> str:
    """Return the path of the sgtune command of this interpreter's environment."""
    return str(Path(sys.executable).parent / "sgtune")


def disk_mb(place: Path) -> float:
    """Return what lies in a folder, in MB (10^6 bytes) of disk; a file with several names counts once."""
    blocks = {}
    for file in place.rglob("*"):
        if not file.is_symlink() and file.is_file():
            facts = file.stat()
            blocks[facts.st_ino] = facts.st_blocks
    return sum(blocks.values()) * 512 / MB


def machine() -> str:
    """Return what a figure should be read beside: cores, load average, date."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{day}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before, Python {sys.version.split()[0]}"
    )


def say(text: str) -> None:
    """Tell the person who waits."""
    sys.stderr.write(text + "\n")
