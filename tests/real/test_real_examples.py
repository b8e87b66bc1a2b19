"""The set-ups of examples/ come up as their README says, and leave nothing when they are ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import need

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def up(name: str) -> Iterator[Path]:
    """Start an example and yield the file that says how to speak to it."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name / "up.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    try:
        if not line:
            pytest.skip(process.stderr.read()[-400:])
        yield Path(line.split(" . ")[1].strip())
    finally:
        process.terminate()
        process.communicate(timeout=60)


def shell(file: Path, command: str) -> str:
    ran = subprocess.run(["bash", "-c", f". {file}; {command}"], capture_output=True, text=True, check=False)
    return ran.stdout + ran.stderr


def gone(home: Path) -> bool:
    named = [
        process for process in psutil.process_iter(["cmdline"]) if str(home) in " ".join(process.info["cmdline"] or [])
    ]
    return not home.exists() and not named


def test_slurm_on_one_machine(tmp_path: Path) -> None:
    need("slurm")
    if os.geteuid():
        pytest.skip("Slurm's daemons need root")
    with up("slurm-on-one-machine") as file:
        assert shell(file, "sinfo --noheader --Node --format '%N %t'").split() == [
            word for node in ("node1", "node2", "node3") for word in (node, "idle")
        ]
    assert gone(file.parent)


def test_docker_without_gpus() -> None:
    need("docker", "rootfs", "compose")
    if os.geteuid():
        pytest.skip("dockerd needs root")
    with up("docker-without-gpus") as file:
        assert "lmsysorg/sglang" in shell(file, "docker image ls")
        assert shell(file, "docker compose version --short").startswith("2.")
    assert gone(file.parent)
