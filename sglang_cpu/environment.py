"""Builds environments that hold the real SGLang without a GPU: one folder per release under .sglang/.

Standard library only. Wheels are installed without their dependencies: SGLang asks for gigabytes of GPU packages,
none of which decides an argument or runs on a CPU.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".sglang"
PINS = HERE / "requirements.txt"
BUILD_SECONDS = 900


def python_of(release: str) -> Path:
    """Return the interpreter of an environment that holds SGLang `release`, building it if it is missing.

    Raises subprocess.CalledProcessError when pip fails.
    """
    HOME.mkdir(exist_ok=True)
    with (HOME / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands at once build it once
        return _built(release)


def _built(release: str) -> Path:
    home = HOME / release
    python = home / "bin" / "python"
    mark = home / "complete"
    stamp = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="utf-8") == stamp:
        return python
    sys.stderr.write(f"building an environment with SGLang {release} (once, about two minutes)\n")
    venv.create(home, with_pip=False, symlinks=True, clear=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-compile", "-r", str(PINS), f"sglang=={release}"]
    subprocess.run(install, check=True, timeout=BUILD_SECONDS)
    mark.write_text(stamp, encoding="utf-8")
    return python


def sources_of(release: str) -> Path:
    """Return a folder with the Python files of SGLang `release`, fetched and unpacked if they are missing."""
    folder = HOME / "sources" / release
    if not (folder / "sglang").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*fetch, f"sglang=={release}", "-d", str(folder)], check=True, timeout=BUILD_SECONDS)
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".py")])
        wheel.unlink()
    return folder
