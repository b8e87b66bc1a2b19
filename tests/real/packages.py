#!/usr/bin/env python3
"""Installs the components that tests/real brings up, from Debian: `python3 tests/real/packages.py [PART...]`.

Needs root and apt. What is there already stays as it is, no daemon is started, and what cannot be installed is named:
the tests that need it skip with that reason. Standard library only, so that it runs before anything is set up.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgtune-real"
POLICY = Path("/usr/sbin/policy-rc.d")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
# The python3 of a Debian release, which the packages of this interpreter go into.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
IN_ROOTFS = "python3,libstdc++6,libgomp1,systemd,systemd-sysv,dbus,curl"
NOT_IN_ROOTFS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/lib/udev/hwdb*")
COMPOSE = CACHE / "cli-plugins" / "docker-compose"
ROOTFS = CACHE / f"rootfs-{SUITES.get(sys.version_info[:2], 'none')}.tar"


@dataclass(frozen=True)
class Part:
    """A component: the programs that show it is there, and Debian's packages of it."""

    programs: tuple[str, ...]
    packages: tuple[str, ...]


PARTS = {
    "docker": Part(("docker", "dockerd", "containerd", "runc"), ("docker.io", "containerd", "runc", "iptables")),
    "registry": Part(("docker-registry",), ("docker-registry",)),
    "rootfs": Part(("mmdebstrap",), ("mmdebstrap",)),
    "slurm": Part(
        ("slurmctld", "slurmd", "sbatch", "munged"), ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix2")
    ),
    "prometheus": Part(("prometheus", "promtool"), ("prometheus",)),
    "podman": Part(("podman", "crun"), ("podman", "crun")),
    "systemd": Part(("systemd-analyze",), ("systemd",)),
}
# What CI has no time for.
BY_HAND = ("podman",)
# Files made once a machine, from packages: which part makes them is needed first.
MADE = {"rootfs": ROOTFS, "compose": COMPOSE}


def install(*parts: str) -> str:
    """Install parts that are missing; return why one is not there afterwards, empty where all are."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next((why for part in parts if (why := _install(part))), "")


def lacks(part: str) -> str:
    """Return what of a part is not there, empty where all of it is."""
    programs = PARTS[part].programs if part in PARTS else ()
    missing = [program for program in programs if shutil.which(program, path=_path()) is None]
    if not missing and part in MADE and not MADE[part].exists():
        missing = [MADE[part].name]
    return ", ".join(missing)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _install(part: str) -> str:
    if not lacks(part):
        return ""
    if os.geteuid() or shutil.which("apt-get") is None:
        return f"no {lacks(part)} here, and only root can install it, on Debian"
    if part in PARTS:
        packages = PARTS[part].packages
        with _no_daemons():
            ran = _apt("install", "-y", "-qq", "--no-install-recommends", *packages)
            if ran.returncode:
                _apt("update", "-qq")
                ran = _apt("install", "-y", "-qq", "--no-install-recommends", *packages)
        if ran.returncode:
            return f"apt-get cannot install {' '.join(packages)}: {_last(ran)}"
    if part in MADE and not MADE[part].exists():
        try:
            {"rootfs": _make_rootfs, "compose": _fetch_compose}[part]()
        except subprocess.CalledProcessError as error:
            return f"{error.cmd[0]} made no {MADE[part].name}: {_last(error)}"
    return f"no {lacks(part)} even after its packages were installed" if lacks(part) else ""


@contextmanager
def _no_daemons():
    """Keep packages from starting what they install."""
    made = not POLICY.exists()
    if made:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if made:
            POLICY.unlink()


def _make_rootfs() -> None:
    """Make the files of a small Debian, the one whose Python is this interpreter's."""
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        raise subprocess.CalledProcessError(1, ["mmdebstrap"], f"no Debian has Python {sys.version_info[:2]}")
    part = ROOTFS.with_name("part-" + ROOTFS.name)
    left_out = [f"--dpkgopt=path-exclude={path}" for path in NOT_IN_ROOTFS]
    _run("mmdebstrap", "--quiet", "--variant=essential", f"--include={IN_ROOTFS}", *left_out, suite, str(part), MIRROR)
    part.replace(ROOTFS)


def _fetch_compose() -> None:
    """Fetch compose v2, which Debian 12 does not have, from Debian 13's packages, into our own folder."""
    apt = CACHE / "trixie"
    (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {MIRROR} trixie main\n")
    options = [f"-oDir::Etc::sourcelist={sources}", "-oDir::Etc::sourceparts=-", f"-oDir::State::lists={apt}/lists",
               f"-oDir::Cache={apt}", "-oAPT::Sandbox::User=root"]  # fmt: skip
    _run("apt-get", *options, "-qq", "update")
    _run("apt-get", *options, "-qq", "download", "docker-compose", cwd=apt)
    _run("dpkg", "-x", str(next(apt.glob("docker-compose_*.deb"))), str(apt / "files"))
    binary = next((apt / "files").rglob("cli-plugins/docker-compose"))
    COMPOSE.parent.mkdir(exist_ok=True)
    shutil.copy2(binary, COMPOSE)
    shutil.rmtree(apt)


def _apt(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", *words], capture_output=True, text=True, env=environment, check=False)


def _run(*words: str, cwd: Path | None = None) -> None:
    subprocess.run(words, capture_output=True, text=True, check=True, cwd=cwd, env=os.environ | {"PATH": _path()})


def _last(ran: subprocess.CompletedProcess[str] | subprocess.CalledProcessError) -> str:
    lines = (str(ran.stdout or "") + str(ran.stderr or "")).strip().splitlines()
    return lines[-1] if lines else f"exit code {ran.returncode}"


def main(parts: list[str]) -> int:
    """Install what was named, or all that CI uses; what cannot be installed is said and is no failure."""
    every = [*PARTS, "compose"]
    if strangers := [part for part in parts if part not in every]:
        sys.stderr.write(f"no part {strangers[0]}; there are {', '.join(every)}\n{__doc__}")
        return 2
    for part in parts or [part for part in every if part not in BY_HAND]:
        if why := install(part):
            sys.stderr.write(f"{part}: {why}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
