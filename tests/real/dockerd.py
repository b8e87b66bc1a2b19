"""A docker daemon of our own: no network but the host's, its files in one folder, GPUs pretended where asked for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil

from tests.real.packages import COMPOSE, ROOTFS

# linux/prctl.h
PR_SET_PDEATHSIG = 1
START_S = 60.0
IMAGE = "lmsysorg/sglang"
# The nvidia device driver of `--gpus all` is there when dockerd finds this hook; ours hands no GPU in.
HOOK = "nvidia-container-runtime-hook"
SITE = "usr/lib/python3/dist-packages"
WORLD = 'name = "container"\nboot_s = 1.0\nnoise = 0.0\n'
LAUNCH_SERVER = """import sys
from tuner.emulator.__main__ import main
sys.exit(main(["--hardware", "h200x8", "--world", "/etc/world.toml", "--", *sys.argv[1:]]))
"""
# What the emulator imports, asked of an interpreter that has it.
ASK_MODULES = """import importlib, pkgutil, sys
import tuner.emulator, tuner.emulator.__main__
for module in pkgutil.iter_modules(tuner.emulator.__path__):
    importlib.import_module(f"tuner.emulator.{module.name}")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def ends_with_us() -> None:
    """Ask the kernel to end this process when the one that started it dies: no test leaves a daemon."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Dockerd:
    """The daemon, started and stopped as often as asked; `gpus` says whether containers may ask for some."""

    def __init__(self, *, gpus: bool = True) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sgtune-dockerd-"))
        self.gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "bin").mkdir()
        hook = self.home / "bin" / HOOK
        hook.write_text("#!/bin/sh\ncat > /dev/null\nexit 0\n")
        hook.chmod(0o755)
        if COMPOSE.exists():
            plugins = self.home / "client" / "cli-plugins"
            plugins.mkdir(parents=True)
            (plugins / "docker-compose").symlink_to(COMPOSE)

    @property
    def environment(self) -> dict[str, str]:
        """What makes docker's client speak to this daemon, and the client Debian's."""
        return {
            "DOCKER_HOST": f"unix://{self.home}/sock",
            "DOCKER_CONFIG": str(self.home / "client"),
            "PATH": f"/usr/bin:{os.environ['PATH']}:/usr/sbin",
        }

    def start(self) -> None:
        """Start it and wait until it answers; raises RuntimeError with the end of its log where it does not."""
        for stale in ("pid", "sock", "exec/containerd/containerd.pid", "exec/containerd/containerd.sock"):
            (self.home / stale).unlink(missing_ok=True)
        hooks = f"{self.home}/bin:" if self.gpus else ""
        command = [
            "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", f"--data-root={self.home}/data",
            f"--exec-root={self.home}/exec", f"--pidfile={self.home}/pid", f"--host=unix://{self.home}/sock",
        ]  # fmt: skip
        environment = os.environ | {"PATH": f"{hooks}{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
                preexec_fn=ends_with_us,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while self.ask("version").returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("dockerd: " + (self.home / "log").read_text(errors="replace")[-800:])
            time.sleep(0.1)

    def ask(self, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
        """Run docker's client and return what came of it."""
        environment = os.environ | self.environment
        return subprocess.run(["docker", *words], capture_output=True, text=True, env=environment, check=False, **more)  # type: ignore[call-overload,no-any-return]

    def containers(self) -> list[str]:
        """Return the names of all containers, running or not."""
        return self.ask("ps", "--all", "--format", "{{.Names}}").stdout.split()

    def kill(self) -> None:
        """SIGKILL the daemon alone: containers and their shims live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop it, end what is left below it, and remove its files."""
        if self._process is not None and self._process.poll() is None:
            if names := self.containers():
                self.ask("rm", "--force", *names)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=3)
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.home) in " ".join(process.info["cmdline"] or []):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(str(self.home))]):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
        shutil.rmtree(self.home, ignore_errors=True)


def import_image(daemon: Dockerd, version: str, *, world: str = WORLD) -> str:
    """Give the daemon an image that stands in for SGLang's own of a release: its server is the emulator."""
    name = f"{IMAGE}:v{version}"
    file = daemon.home / "image.tar"
    write_image(file, version, world)
    done = daemon.ask("import", "--change", "ENV PYTHONUNBUFFERED=1", str(file), name)
    file.unlink()
    if done.returncode:
        raise RuntimeError(f"docker import: {done.stderr}")
    return name


def write_image(file: Path, version: str, world: str = WORLD) -> None:
    """Write Debian's files with this checkout's packages and what they import."""
    root = Path(__file__).resolve().parents[2]
    shutil.copy(ROOTFS, file)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(file, "a") as image:
        staged = Path(folder)
        (staged / "sglang").mkdir()
        (staged / "sglang/__init__.py").touch()
        (staged / "sglang/launch_server.py").write_text(LAUNCH_SERVER)
        information = staged / f"sglang-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
        (staged / "world.toml").write_text(world)
        for path in (*_packages(), *(root / name for name in ("hwprobe", "models", "planner", "tuner")),
                     staged / "sglang", information):  # fmt: skip
            image.add(path, f"{SITE}/{path.name}", filter=lambda entry: None if "/tests/" in entry.name else entry)
        image.add(staged / "world.toml", "etc/world.toml")


def _packages() -> list[Path]:
    """Return what the emulator imports of this interpreter's packages, with the libraries some bring."""
    imported = subprocess.run([sys.executable, "-c", ASK_MODULES], capture_output=True, text=True, check=True)
    site = Path(psutil.__file__).parent.parent
    names = imported.stdout.split()
    paths = [path for name in names for path in site.glob(f"{name}*") if _belongs(path, name)]
    return sorted({*paths, *(libraries for path in paths for libraries in site.glob(f"{path.name}.libs"))})


def _belongs(path: Path, name: str) -> bool:
    return path.name == name or path.name == f"{name}.py" or (path.name.startswith(f"{name}.") and path.suffix == ".so")
