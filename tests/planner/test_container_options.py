"""What a launch file asks of a container's runtime is read in docker run's spelling, from scripts and from compose."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.launch_lines.read import launch_of_file

RUN = """#!/bin/bash
LIMIT=-1
exec docker run --rm --name sglang --gpus all -m 64g --shm-size 32g --ulimit memlock=$LIMIT --ulimit=stack=67108864 \\
  --security-opt no-new-privileges --privileged --read-only=false --env NCCL_DEBUG=INFO -v /models:/models:ro \\
  lmsysorg/sglang:v0.5.23 python3 -m sglang.launch_server --model-path /models/r1 --shm-size-of-nothing 3
"""
COMPOSE = """
services:
  sglang:
    image: lmsysorg/sglang:v0.5.23
    shm_size: 32gb
    ulimits: {memlock: -1, nofile: {soft: 1024, hard: 4096}}
    security_opt: ["no-new-privileges:true"]
    cap_add: [IPC_LOCK]
    privileged: true
    command: [python3, -m, sglang.launch_server, --model-path, /models/r1]
"""


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        (
            "run.sh",
            RUN,
            ("--memory=64g", "--shm-size=32g", "--ulimit=memlock=-1", "--ulimit=stack=67108864",
             "--security-opt=no-new-privileges", "--privileged"),
        ),
        (
            "compose.yaml",
            COMPOSE,
            ("--ulimit=memlock=-1", "--ulimit=nofile=1024:4096", "--shm-size=32gb",
             "--security-opt=no-new-privileges:true", "--cap-add=IPC_LOCK", "--privileged"),
        ),
        ("launch.sh", "exec python3 -m sglang.launch_server --model-path /models/r1\n", ()),
    ],
)  # fmt: skip
def test_options_of_the_runtime_are_read(tmp_path: Path, name: str, text: str, options: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text)
    assert launch_of_file(tmp_path / name).options == options
