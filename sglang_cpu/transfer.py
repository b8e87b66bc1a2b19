"""What prefill and decode servers need on a CPU to move a KV cache: Mooncake over TCP, and the library that it loads.

Standard library only. The packages lie in a folder of their own, so that the environment without them stays as it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
import sys

from environment import BUILD_SECONDS, HOME

# The wheel without CUDA, and what it unpacks messages with (46 MB).
PACKAGES = ("mooncake-transfer-engine-non-cuda==0.3.13.post1", "msgpack==1.2.4")
# Mooncake is linked to it, RDMA or not; Debian's package and what that needs.
LIBRARY = "libibverbs.so.1"
DEBIAN = ("libibverbs1", "libnl-3-200", "libnl-route-3-200")
FOLDER = HOME / "transfer"


def transfer_variables() -> dict[str, str]:
    """Return what a server's environment has to add, installing what is missing.

    Raises subprocess.CalledProcessError when pip, apt-get or dpkg fails, OSError where there is no apt-get.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (HOME / "transfer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = FOLDER / "complete"
        stamp = f"{' '.join(PACKAGES)} {sys.version}"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != stamp:
            _install_packages()
            mark.write_text(stamp, encoding="utf-8")
        variables = {"PYTHONPATH": str(FOLDER / "packages")}
        return variables if _loads() else variables | {"LD_LIBRARY_PATH": _library_folders()}


def _install_packages() -> None:
    target = FOLDER / "packages"
    shutil.rmtree(target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), *PACKAGES], check=True, timeout=BUILD_SECONDS)


def _loads() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def _library_folders() -> str:
    """Return where the library and what it needs lie, from Debian's packages: they are unpacked here, not installed."""
    root = FOLDER / "debian"
    if not list(root.glob(f"usr/lib/*/{LIBRARY}")):
        root.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", *DEBIAN], cwd=root, check=True, timeout=BUILD_SECONDS)
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True, timeout=BUILD_SECONDS)
    return ":".join(sorted({str(file.parent) for file in root.glob("**/lib/*/*.so.*")}))
