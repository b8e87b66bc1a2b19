"""The exported compose.yaml under compose v2: accepted as it is, up when ready, restarted, and gone."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.launch_files.targets import Target
from tests.real.conftest import need
from tests.real.dockerd import Dockerd
from tests.real.files import IMAGE, exported, may_raise_limits, wait_until
from tests.real.slurm import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Compose = Callable[..., subprocess.CompletedProcess[str]]
# What a person would wait half a minute for: the exported check asks every 30 s.
SOONER = "services: {sglang: {healthcheck: {interval: 1s, start_period: 60s}}}\n"
# Where root may not raise limits no container gets `memlock: -1`.
NO_LIMITS = "services: {sglang: {ulimits: !override {nofile: 4000}}}\n"


@pytest.fixture
def port(daemon: Dockerd, tmp_path: Path) -> int:
    need("compose")
    number = free_ports(1)[0]
    exported(Target.COMPOSE, tmp_path, number)
    return number


@pytest.fixture
def compose(daemon: Dockerd, port: int, tmp_path: Path) -> Iterator[Compose]:
    (tmp_path / "sooner.yaml").write_text(SOONER)
    (tmp_path / "limits.yaml").write_text(NO_LIMITS if not may_raise_limits() else SOONER)
    files = ("--file", "compose.yaml", "--file", "sooner.yaml", "--file", "limits.yaml")

    def run(*words: str, alone: bool = False) -> subprocess.CompletedProcess[str]:
        chosen = files[:2] if alone else files
        return daemon.ask("compose", *chosen, *words, cwd=tmp_path)

    yield run
    run("down", "--volumes", "--timeout", "5")


def test_compose_reads_the_file_as_it_is(compose: Compose) -> None:
    ran = compose("config", "--format", "json", alone=True)
    assert ran.returncode == 0, ran.stderr
    service = json.loads(ran.stdout)["services"]["sglang"]
    assert service["image"] == IMAGE
    assert service["command"][:3] == ["python3", "-m", "sglang.launch_server"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_up_waits_until_it_is_ready_and_a_crash_is_restarted(daemon: Dockerd, compose: Compose, port: int) -> None:
    ran = compose("up", "--detach", "--wait")
    assert ran.returncode == 0, ran.stderr
    assert answers(port)
    (name,) = daemon.containers()
    first = state(daemon, name)
    os.kill(first["Pid"], 9)
    wait_until(lambda: state(daemon, name)["Pid"] not in (0, first["Pid"]))
    wait_until(lambda: state(daemon, name)["Health"]["Status"] == "healthy")
    assert answers(port)
    assert compose("down", "--timeout", "5").returncode == 0
    assert daemon.containers() == []


def state(daemon: Dockerd, name: str) -> dict[str, Any]:
    return json.loads(daemon.ask("inspect", "--format", "{{json .State}}", name).stdout)


def answers(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
        return answer.status == 200
