"""The options of `sgtune export`: what is exported, where to, and what a site's launch files need."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TargetName(StrEnum):
    BASH = "bash"
    YAML = "yaml"
    DOCKER = "docker"
    COMPOSE = "compose"
    SYSTEMD = "systemd"
    K8S = "k8s"
    SLURM = "slurm"
    ALL = "all"


Targets = Annotated[list[TargetName] | None, typer.Option("--target", help="Which files to write, repeatable.")]
Trial = Annotated[int | None, typer.Option("--trial", help="Trial number of the run; default: the winner.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="JSON of sgtune plan --json (- reads it from stdin), instead of --run."),
]
Candidate = Annotated[int, typer.Option("--candidate", help="Which of the plan's candidates, 1 the best.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write launch files to.")]
Bundle = Annotated[
    Path | None, typer.Option("--bundle", help="Folder for all files with a README and the data behind them.")
]
ContainerImage = Annotated[
    str | None, typer.Option("--image", help="Container image; default: lmsysorg/sglang of the release.")
]
HostPython = Annotated[str, typer.Option("--python", help="Interpreter with sglang, outside containers.")]
Host = Annotated[str, typer.Option("--host", help="Address the server listens on; 0.0.0.0: all of the machine's.")]
Port = Annotated[int, typer.Option("--port", help="Port the server listens on.")]
ShmGib = Annotated[int, typer.Option("--shm-gib", help="Shared memory of a container, GiB.")]
WeightsVolume = Annotated[
    str | None,
    typer.Option("--weights-volume", help="Folder or volume with the weights; default: the model path itself."),
]
CacheVolume = Annotated[str, typer.Option("--cache-volume", help="Folder or volume that keeps compiled kernels.")]
Metrics = Annotated[bool, typer.Option("--metrics/--no-metrics", help="Serve /metrics for Prometheus.")]
ServedModelName = Annotated[
    str | None, typer.Option("--served-model-name", help="The model's name in the API; default: its path.")
]
ReasoningParser = Annotated[
    str | None,
    typer.Option(
        "--reasoning-parser",
        help="Separates reasoning from the answer; none keeps it in the text. Default: deepseek-r1 for R1, else none.",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    str | None,
    typer.Option("--api-key-file", help="File with the API key, read at start; compose, systemd: SGLANG_API_KEY."),
]
SystemdUser = Annotated[
    str | None, typer.Option("--user", help="User of the systemd service; default: one of its own.")
]
CpusPerGpu = Annotated[int, typer.Option("--cpus-per-gpu", help="Cores asked of Slurm and Kubernetes.")]
MemoryGib = Annotated[int, typer.Option("--memory-gib", help="Memory asked of Kubernetes, GiB a pod.")]
TimeLimit = Annotated[str, typer.Option("--time-limit", help="Slurm's --time: 7-00:00:00, UNLIMITED.")]
