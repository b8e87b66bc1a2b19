"""What this installation can do: every part with its state, its purpose, and the command that adds it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.holds import scratch_folder
from hwprobe.inventory.nvml import Inventory, read_inventory
from tuner import __version__
from tuner.engines.image_check import NO_GPU_RUNTIME, gpus_refused
from tuner.server.gate import LEAST_SHM_MIB
from tuner.server.ports import candidates, is_free

ASK_S = 60.0
DOCKER_S = 10.0
# A stream is a socket; the load generator raises the soft limit to the hard one.
MANY_STREAMS = 4096
EXTRAS = {
    "tune": ("tune's model-guided sampler (else TPE) and the emulated engine", ("scikit-learn", "aiohttp")),
    "gpu": ("measuring GPUs with probe; --sampler gp", ("torch",)),
    "cluster": ("tune on the nodes of a Ray cluster", ("ray",)),
    "dashboard": ("sgtune dashboard", ("streamlit", "plotly", "pandas")),
}


class PartState(StrEnum):
    """Whether a part is there; only `broken` keeps everything else from working."""

    OK = "ok"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """One part: its state, its purpose, and the fix if it is missing."""

    part: str
    state: PartState
    found: str
    serves: str
    fix: str = ""


Run = Callable[[list[str], float], tuple[int, str]]


def run_command(command: list[str], limit_s: float) -> tuple[int, str]:
    """Run a command and return its exit code and output; 127 when it cannot be started, 124 when it took too long."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {limit_s:.0f} s"
    return process.returncode, (process.stdout + process.stderr).strip()


def examine(
    python: str, *, run: Run = run_command, inventory: Callable[[], Inventory] = read_inventory
) -> tuple[PartReport, ...]:
    """Look at everything sgtune may need; starts nothing that lasts. `python` is the interpreter of --engine local."""
    return (
        _itself(),
        *(_extra(name, serves, packages) for name, (serves, packages) in EXTRAS.items()),
        _gpus(inventory()),
        _local(python, run),
        _docker(run),
        _files(),
        _shared_memory(),
        _ports(),
    )


def _itself() -> PartReport:
    engines = "plan, check, predict, export, bench; tune on the simulated engine"
    return PartReport(
        part="sgtune", state=PartState.OK, found=f"{__version__} on Python {platform.python_version()}", serves=engines
    )


def _extra(name: str, serves: str, packages: tuple[str, ...]) -> PartReport:
    versions, missing = [], []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return PartReport(
        part=f"extra [{name}]",
        state=PartState.MISSING if missing else PartState.OK,
        found=f"no {', '.join(missing)}" if missing else ", ".join(versions),
        serves=serves,
        fix=f"in the checkout: pip install -e '.[{name}]'" if missing else "",
    )


def _gpus(inventory: Inventory) -> PartReport:
    names = [gpu.name for gpu in inventory.gpus]
    counts = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    lost = f"; lost: {', '.join(inventory.lost)}" if inventory.lost else ""
    return PartReport(
        part="GPUs",
        state=PartState.BROKEN if lost else PartState.OK if names else PartState.MISSING,
        found=(counts or str(inventory.absent)) + lost,
        serves="probe; tune, bench and verify on real servers",
        fix="see dmesg for Xid" if lost else "" if names else "plan for a catalogue machine: --hardware h200x8",
    )


def _local(python: str, run: Run) -> PartReport:
    code, output = run([python, "-c", "import importlib.metadata as m; print(m.version('sglang'))"], ASK_S)
    last = output.splitlines()[-1] if output else ""
    return PartReport(
        part="engine local",
        state=PartState.MISSING if code else PartState.OK,
        found=f"{python} has SGLang {last}" if not code else f"{python}: {last}",
        serves="tune and verify with an interpreter that holds sglang",
        fix="name it with --python, as in --python /opt/sglang/bin/python" if code else "",
    )


def _docker(run: Run) -> PartReport:
    serves = "tune and verify with an image"
    if shutil.which("docker") is None:
        return PartReport(
            part="engine docker", state=PartState.MISSING, found="no docker here", serves=serves, fix="install docker"
        )
    code, output = run(["docker", "version", "--format", "{{.Server.Version}}"], DOCKER_S)
    last = output.splitlines()[-1] if output else ""
    gpus, fix = ("", "start its daemon, or join its group") if code else _gpus_in_containers(run)
    return PartReport(
        part="engine docker",
        state=PartState.MISSING if fix else PartState.OK,
        found=last if code else f"docker {last}, {gpus}",
        serves=serves,
        fix=fix,
    )


def _gpus_in_containers(run: Run) -> tuple[str, str]:
    """Start an empty image with --gpus all; return what came of it, and what to do about it, empty where it works.

    The image holds no program, so that an error about the program means that everything before it went well.
    """
    tag = f"sgtune-doctor:{os.getpid()}"
    with scratch_folder("doctor") as folder:
        empty = folder / "empty.tar"
        tarfile.open(empty, "w").close()
        code, output = run(["docker", "import", str(empty), tag], DOCKER_S)
    if code:
        return f"takes no image: {output.splitlines()[-1] if output else code}", "see the daemon's log"
    words = ["docker", "run", "--rm", "--gpus", "all", "--network", "none", "--entrypoint", "/nothing", tag]
    code, output = run(words, DOCKER_S)
    run(["docker", "rmi", "--force", tag], DOCKER_S)
    if "no such file or directory" in output:
        return "containers get GPUs", ""
    if gpus_refused(output):
        return "containers get no GPUs: " + output.splitlines()[0], NO_GPU_RUNTIME
    return "starts no container: " + (output.splitlines()[0] if output else str(code)), "see the daemon's log"


def _files() -> PartReport:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = hard != resource.RLIM_INFINITY and hard < MANY_STREAMS
    return PartReport(
        part="open files",
        state=PartState.MISSING if few else PartState.OK,
        found="no limit" if hard == resource.RLIM_INFINITY else f"up to {hard:,}",
        serves=f"as many streams; {MANY_STREAMS:,} take that many",
        fix=f"ulimit -Hn {2 * MANY_STREAMS}" if few else "",
    )


def _shared_memory(folder: Path = Path("/dev/shm")) -> PartReport:
    serves = "NCCL and SGLang's queues"
    if not folder.is_dir():
        return PartReport(
            part="shared memory", state=PartState.MISSING, found=f"no {folder}", serves=serves, fix="Linux"
        )
    free_mib = shutil.disk_usage(folder).free / 2**20
    little = free_mib < LEAST_SHM_MIB
    return PartReport(
        part="shared memory",
        state=PartState.MISSING if little else PartState.OK,
        found=f"{free_mib / 1024:.1f} GiB free in {folder}",
        serves=serves,
        fix="give the container more: --shm-size 32g" if little else "",
    )


def _ports() -> PartReport:
    try:
        ports = candidates()
    except InputError as error:
        return PartReport(part="ports", state=PartState.BROKEN, found=str(error), serves="servers of tune and verify")
    free = sum(is_free(port) for port in ports)
    return PartReport(
        part="ports",
        state=PartState.OK if free else PartState.BROKEN,
        found=f"{free:,} of {len(ports):,} free from {ports.start:,} to {ports.stop:,}",
        serves="servers of tune and verify",
        fix="" if free else "SGTUNE_PORTS=FIRST-LAST names others",
    )
