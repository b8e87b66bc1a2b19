#!/usr/bin/env python3
"""What a stranger waits for: a fresh clone to README's first answer, and what the base install takes on disk.

    python benchmarks/first_hour.py             both, in a temporary folder; about a minute
    python benchmarks/first_hour.py --assert    exit 1 beyond 60 s to the first answer or 150 MB of packages on disk

Packages are counted as what they take on disk, bytecode with them, without pip and setuptools. The clone is of this
checkout's last commit; what it needs comes from the registry, without pip's cache.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import ROOT, Ran, disk_mb, kept_bytecode, machine, run

MOST_S, MOST_MB = 60.0, 150.0
TOOLS = re.compile(r"^(?:pip|setuptools|pkg_resources|_distutils_hack|distutils-precedence)\b")


def first_command(readme: str) -> list[str]:
    """Return README's first command as words. Raises ValueError when there is none."""
    match = re.search(r"^python3 (dev\.py sgtune .+)$", readme, re.MULTILINE)
    if match is None:
        raise ValueError("README shows no `python3 dev.py sgtune ...`")
    return [sys.executable, *shlex.split(match[1])]


def without_tools_mb(home: Path) -> float:
    """Return what an environment's packages take, without pip and setuptools, in MB."""
    site = next(home.glob("lib/python*/site-packages"))
    return sum(
        disk_mb(entry) if entry.is_dir() else entry.stat().st_blocks * 512 / 1e6
        for entry in site.iterdir()
        if not TOOLS.match(entry.name)
    )


def must(words: list[str], cwd: Path, environment: Mapping[str, str]) -> Ran:
    """Run a command that has to succeed. Raises SystemExit with its last words."""
    ran = run(words, cwd=cwd, environment=environment)
    if ran.code:
        raise SystemExit(f"{shlex.join(words)} ended with {ran.code}:\n{ran.out[-2000:]}")
    return ran


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assert", dest="judge", action="store_true", help="exit 1 when a promise is not kept")
    options = parser.parse_args()
    print(machine())
    environment = {name: value for name, value in kept_bytecode().items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as name:
        folder, clone, home = Path(name), Path(name) / "sgtune", Path(name) / "env"
        fresh = environment | {"PIP_NO_CACHE_DIR": "1"}
        began = time.monotonic()
        must(["git", "clone", "--quiet", str(ROOT), str(clone)], folder, fresh)
        cloned = time.monotonic() - began
        words = first_command((clone / "README.md").read_text(encoding="utf-8"))
        answer = must(words, clone, fresh)
        first = time.monotonic() - began
        again = must(words, clone, fresh)
        print(shlex.join(["python3", *words[1:]]))
        print(f"first answer {first:.0f} s after the clone began (clone {cloned:.1f} s, command {answer.wall_s:.0f} s, "
              f"its CPU {answer.cpu_s:.0f} s); once more {again.wall_s:.1f} s")  # fmt: skip
        must([sys.executable, "-m", "venv", str(home)], folder, environment)
        pip = must([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", str(clone)], folder, environment)
        help_ = must([str(home / "bin" / "sgtune"), "--version"], folder, environment)
        whole, alone = disk_mb(home), without_tools_mb(home)
        print(f"python3 -m venv env && env/bin/pip install . ({pip.wall_s:.0f} s, {help_.out.strip()}): {whole:.0f} MB "
              f"on disk, {alone:.0f} MB of it without pip and setuptools")  # fmt: skip
    within_promise = first <= MOST_S and alone <= MOST_MB
    print(f"promised: {MOST_S:.0f} s, and {MOST_MB:.0f} MB without pip: {'kept' if within_promise else 'NOT kept'}")
    return int(options.judge and not within_promise)


if __name__ == "__main__":
    sys.exit(main())
