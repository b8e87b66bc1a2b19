"""The server is found in whatever starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprobe.errors import InputError
from planner.launch_lines.read import launch_of_file, launch_of_words
from planner.launch_lines.settings import with_config_file

WANTED = ("--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8")


@pytest.mark.parametrize(
    "line",
    [
        "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8",
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8 > log 2>&1",
        "sglang serve deepseek-ai/DeepSeek-R1 --tp 8",
        "docker run --gpus all --shm-size 32g -p 30000:30000 --ipc=host lmsysorg/sglang:latest "
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8",
        "--model-path deepseek-ai/DeepSeek-R1 --tp 8",
    ],
)
def test_commands(line: str) -> None:
    assert launch_of_words(line.split()).words == WANTED


def test_docker_names_release_and_environment() -> None:
    line = ["docker", "run", "-e", "NCCL_DEBUG=INFO", "lmsysorg/sglang:v0.5.12", "bash", "-c"]
    found = launch_of_words([*line, "python -m sglang.launch_server --tp 8"])
    assert found.image_version == "0.5.12"
    assert found.environment == {"NCCL_DEBUG": "INFO"}
    assert found.words == ("--tp", "8")


def test_something_else_is_an_error_that_shows_what_is_wanted() -> None:
    with pytest.raises(InputError, match=r"no SGLang server in 'vllm serve m'.*sglang\.launch_server"):
        launch_of_words(["vllm", "serve", "m"])


def test_a_shell_script(tmp_path: Path) -> None:
    file = tmp_path / "launch.sh"
    file.write_text(
        "#!/bin/bash\nset -e\nexport SGLANG_ENABLE_JIT_DEEPGEMM=0\n# a comment\n"
        "python3 -m sglang.launch_server \\\n  --model-path deepseek-ai/DeepSeek-R1 \\\n  --tp 8\n"
    )
    found = launch_of_file(file)
    assert found.words == WANTED
    assert found.environment == {"SGLANG_ENABLE_JIT_DEEPGEMM": "0"}


COMPOSE = """
services:
  db: {image: "postgres:16", command: ["postgres"]}
  sglang:
    image: lmsysorg/sglang:v0.5.12
    entrypoint: python3 -m sglang.launch_server
    command: --model-path deepseek-ai/DeepSeek-R1
      --tp 8
    environment: {NCCL_DEBUG: INFO}
"""
KUBERNETES = """
apiVersion: v1
kind: Service
spec: {ports: [{port: 30000}]}
---
apiVersion: apps/v1
kind: StatefulSet
spec:
  template:
    spec:
      containers:
        - name: r1
          image: lmsysorg/sglang:v0.5.12
          command: ["python3", "-m", "sglang.launch_server"]
          args: ["--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8"]
          env: [{name: NCCL_DEBUG, value: INFO}]
"""


@pytest.mark.parametrize("text", [COMPOSE, KUBERNETES], ids=["compose", "kubernetes"])
def test_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    found = launch_of_file(file)
    assert found.words == WANTED
    assert found.image_version == "0.5.12"
    assert found.environment == {"NCCL_DEBUG": "INFO"}


def test_a_shell_inside_kubernetes(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(
        "spec:\n  containers:\n  - image: lmsysorg/sglang:latest\n    command: [bash, -c]\n    args:\n"
        "    - |\n      cd /models\n      python3 -m sglang.launch_server \\\n"
        "        --model-path deepseek-ai/DeepSeek-R1 --tp 8\n"
    )
    assert launch_of_file(file).words == WANTED


def test_what_is_no_yaml_or_starts_nothing_is_an_error(tmp_path: Path) -> None:
    broken, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    broken.write_text("a: [1, 2")
    other.write_text("services: {db: {command: postgres}}")
    with pytest.raises(InputError, match="is not valid YAML"):
        launch_of_file(broken)
    with pytest.raises(InputError, match="starts no SGLang server"):
        launch_of_file(other)


def test_sglangs_own_config_file_comes_before_the_words(tmp_path: Path) -> None:
    file = tmp_path / "r1.yaml"
    file.write_text("tp-size: 16\ntrust-remote-code: true\nmodel_path: r1\n")
    words, wrong = with_config_file(["--config", str(file), "--tp-size", "8"])
    assert words == ["--tp-size", "16", "--trust-remote-code", "--model-path", "r1", "--tp-size", "8"]
    assert wrong == []
    assert with_config_file(["--config", str(tmp_path / "none.yaml")])[1]
    assert launch_of_file(file).words[:2] == ("--tp-size", "16")


def test_variables_are_filled_in_where_known_and_left_out_where_not() -> None:
    words = [
        "TP=8",
        "IP=10.0.0.1",
        "python",
        "-m",
        "sglang.launch_server",
        "--tp",
        "${TP}",
        "--nnodes",
        "$(LWS_GROUP_SIZE)",
    ]
    found = launch_of_words(
        [*words, "--node-rank", "$LWS_WORKER_INDEX", "--dist-init-addr", "$HOST:20000", "--host", "$IP:1"]
    )
    assert found.words == ("--tp", "8", "--node-rank", "0", "--host", "10.0.0.1:1")
    assert found.left_out == ("--dist-init-addr",)
    assert [(value.flag, value.text) for value in found.unknown] == [("--nnodes", "$(LWS_GROUP_SIZE)")]
    assert {taken.name for taken in found.assumed} == {"LWS_WORKER_INDEX"}
