#!/usr/bin/env python3
"""The one entry to a checkout: makes its virtual environment (.venv) and runs things in it.

    python3 dev.py sgtune plan --hardware nf5688g7 --isl 1000 --osl 1000 --concurrency 1024
    python3 dev.py test            what CI runs, side by side (arguments go to pytest: some tests, one after the other)
    python3 dev.py test --quick    before each commit: without servers, pages, whole tunes and what is slow
    python3 dev.py test --deep     what takes minutes each: real SGLang, two Ray nodes, kills; before a release
    python3 dev.py test --real     dockerd, podman, Slurm, compose, systemd, Prometheus: installs them (root, Debian)
    python3 dev.py check           formatting, lint, types
    python3 dev.py oracle          sgtune's reading of launch lines against SGLang's own (--help)
    python3 dev.py oracle --radix  the replay's radix cache against SGLang's own, on three kinds of traffic
    python3 dev.py oracle --checkpoints  a launch of every kind of checkpoint before its release's own parser
    python3 dev.py flags 0.5.24    read a release's command-line flags into planner/sglang/flags.json
    python3 dev.py sglang-cpu      the real SGLang on this machine's CPU, with a tiny DeepSeek-V3 (--help)
    python3 dev.py install         only make the environment, with the development tools

Needs Python 3.11 or newer with pip; nothing else. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".venv"
PYTHON = HOME / "bin" / "python"
OLDEST = (3, 11)
# What a command of sgtune is at its best with; the others need the base alone.
EXTRAS = {"tune": "tune", "verify": "tune", "dashboard": "dashboard"}
# Tests wait more than they compute; beyond four they wait for each other.
SIDE_BY_SIDE = ("-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal")
QUICK = ("-m", "not slow and not alone and not whole and not deep", "-q")
EVERY_CHANGE = ("-m", "not deep")
# Deep tests start real servers of their own on all cores: one after the other.
DEEP = ("-m", "deep", "-v")


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return fail(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is {sys.version.split()[0]}")
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command == "sgtune":
        return install(EXTRAS.get(rest[0], "") if rest else "") or run("tuner.cli.main", *rest)
    if command == "test":
        if "--real" in rest:
            os.environ["SGTUNE_REAL"] = "install"
        return install("dev") or run("pytest", *test_arguments(rest))
    if command == "check":
        return install("dev") or check()
    if command in ("oracle", "flags"):
        script, rest = oracle_script(command, rest)
        extras = "" if command == "flags" else "dev"  # a release's flags are read from its wheel alone
        return install(extras) or subprocess.run([str(PYTHON), str(script), *rest], check=False).returncode
    if command == "sglang-cpu":
        return subprocess.run([sys.executable, str(ROOT / "sglang_cpu" / "run.py"), *rest], check=False).returncode
    if command == "install":
        return install("dev")
    sys.stdout.write((__doc__ or "") + "\n")
    return 0 if command in ("help", "-h", "--help") else fail(f"unknown command '{command}'", code=2)


def oracle_script(command: str, typed: list[str]) -> tuple[Path, list[str]]:
    """Return the script of `oracle` or `flags`, and the arguments that are its own."""
    for flag, script in (("--radix", "radix.py"), ("--checkpoints", "checkpoints.py")):
        if flag in typed:
            return ROOT / "oracle" / script, [word for word in typed if word != flag]
    return ROOT / "oracle" / ("run.py" if command == "oracle" else "flags.py"), typed


def test_arguments(typed: list[str]) -> list[str]:
    """Return pytest's arguments: what every change must pass, the quick, the deep, the real, or what was given."""
    rest = [each for each in typed if each not in ("--real", "--deep", "--quick")]
    if "--real" in typed:
        return ["tests/real", *rest]
    if "--deep" in typed:
        return [*DEEP, *rest]
    if "--quick" in typed:
        return [*SIDE_BY_SIDE, *QUICK, *rest]
    return typed or [*SIDE_BY_SIDE, *EVERY_CHANGE]


def check() -> int:
    """Run every check and fail if any does: a reader wants all complaints at once."""
    return max(run("ruff", "format", "--check", "."), run("ruff", "check", "."), run("mypy"))


def run(module: str, *arguments: str) -> int:
    """Run a module of the environment; PYTHONSAFEPATH keeps the working directory off the path.

    Bytecode is kept: tests start hundreds of processes, each of which would compile what it imports.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [str(PYTHON), "-m", module, *arguments]
    return subprocess.run(command, env=environment | {"PYTHONSAFEPATH": "1"}, check=False).returncode


def install(extras: str) -> int:
    """Make the environment if it is missing or older than pyproject.toml. Returns 0 when it is ready."""
    stamp = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    mark = HOME / f"sgtune-{extras or 'base'}.installed"
    full = HOME / "sgtune-dev.installed"
    if any(file.is_file() and file.read_text() == stamp for file in (mark, full)):
        return 0
    say(f"setting up {HOME.name} (once, about a minute)")
    pip = make_environment()
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    pip_run = subprocess.run([*pip, "install", "--quiet", "--editable", target], check=False)
    if pip_run.returncode:
        return fail("pip could not install sgtune; its message is above")
    mark.write_text(stamp)
    return 0


def make_environment() -> list[str]:
    """Create the environment and return the command that is its pip; works without ensurepip too."""
    if not PYTHON.exists():
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            venv.create(HOME, with_pip=True, symlinks=True)
        except subprocess.CalledProcessError:
            venv.create(HOME, with_pip=False, symlinks=True, clear=True)
    own = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(PYTHON)]


def say(text: str) -> None:
    sys.stderr.write(f"dev.py: {text}\n")


def fail(text: str, code: int = 1) -> int:
    say(f"error: {text}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
