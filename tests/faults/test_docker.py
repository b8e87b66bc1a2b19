"""The docker engine through a stand-in for docker's client: a container is named, and removed in any case."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import ServerConfig
from tests.faults.conftest import Launcher
from tests.left import nothing_left
from tuner.engines.live import LiveEngine
from tuner.engines.runners import DockerRunner

# Runs what the container would run as the emulated server, and writes down how it was called.
DOCKER = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in rm|ps|image) exit 0;; esac
while [ "$1" != sglang.launch_server ]; do shift; done
shift
exec {python} -m tuner.emulator --world {world} -- "$@"
"""


@pytest.fixture
def docker(engine: Launcher, tmp_path: Path) -> tuple[LiveEngine, Path]:
    emulated = engine()
    client, calls = tmp_path / "docker", tmp_path / "calls"
    client.write_text(DOCKER.format(calls=calls, python=sys.executable, world=tmp_path / "world.toml"))
    client.chmod(0o755)
    runner = DockerRunner(image="lmsysorg/sglang:v0.5.23", model_path="/models/r1", docker=str(client))
    return replace(emulated, runner=runner, model_path="/models/r1"), calls


def test_a_container_is_named_mounted_and_removed(docker: tuple[LiveEngine, Path], config: ServerConfig) -> None:
    engine, calls = docker
    server = engine.launch(config, 0)
    server.stop()
    *looks, run, remove = calls.read_text().splitlines()
    assert all(look.startswith("ps ") for look in looks)
    name = str(server.ready.server_info["served_model_name"])
    assert f"--name {name} " in run
    assert "-v /models/r1:/models/r1:ro" in run
    assert "--gpus all" in run
    assert run.index("lmsysorg/sglang:v0.5.23") < run.index("--tp-size 8")
    assert remove == f"rm --force {name}"


def test_a_container_is_removed_when_the_tuner_is_killed(docker: tuple[LiveEngine, Path], config: ServerConfig) -> None:
    engine, calls = docker
    pid = os.fork()
    if not pid:  # a tuner of its own, killed while its server runs
        engine.launch(config, 0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    until = time.monotonic() + 60
    while "rm --force" not in calls.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert nothing_left()
