"""The docker engine on podman, behind a `docker` that is podman: a kill that only a sweep cleans up after."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models.version import NEWEST
from tests.children import start_sgtune
from tests.real.conftest import need
from tests.real.dockerd import IMAGE, write_image
from tests.real.files import wait_until
from tests.real.test_real_docker import NO_GPU, TUNE

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]
# Root without CAP_SYS_RESOURCE gets no container from podman but with limits that it may set.
CLIENT = """#!/bin/sh
podman="podman --runtime runc --root {home}/root --runroot {home}/run --cgroup-manager cgroupfs --events-backend file"
[ "$1" = run ] || exec $podman "$@"
shift
exec $podman run --ulimit nofile=20000:20000 --ulimit nproc=1000:1000 "$@"
"""


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a `docker` on the path that is podman with a store of its own, and return an image it has."""
    need("podman", "rootfs")
    home = Path(tempfile.mkdtemp(prefix="sgtune-"))  # podman takes no path of more than 50 characters
    client = home / "bin" / "docker"
    client.parent.mkdir()
    client.write_text(CLIENT.format(home=home))
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "image.tar", str(NEWEST))
    image = f"{IMAGE}:v{NEWEST}"
    if (made := docker("import", str(tmp_path / "image.tar"), image)).returncode:
        pytest.skip(f"podman imports nothing here: {made.stderr.strip()[-300:]}")
    if (ran := docker("run", "--rm", "--network", "host", image, "true")).returncode:
        pytest.skip(f"podman starts nothing here: {ran.stderr.strip()[-300:]}")
    yield image
    docker("rm", "--all", "--force")
    docker("rmi", "--all", "--force")
    shutil.rmtree(home, ignore_errors=True)


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def test_a_killed_tune_is_resumed_beside_nothing(podman: str, tmp_path: Path) -> None:
    words = (*TUNE, "--image", podman)
    tuner = start_sgtune(*words, *NO_GPU)
    wait_until((tmp_path / "runs/a/trials/0/server.log").exists)
    wait_until(lambda: docker("ps", "--quiet").stdout)
    shims = [
        child for child in psutil.Process(tuner.pid).children(recursive=True)
        if "tuner.server.shim" in " ".join(child.cmdline())
    ]  # fmt: skip
    tuner.send_signal(signal.SIGKILL)
    for shim in shims:
        shim.kill()
    tuner.communicate()
    resumed = start_sgtune(*words, "--json", "--resume", *NO_GPU)
    out, errors = resumed.communicate(timeout=300)
    assert (resumed.returncode, json.loads(out)["launches"]) == (0, 1), errors
    assert docker("ps", "--all", "--quiet").stdout == ""
