"""What a launch's environment shows of a node's GPUs: CUDA_VISIBLE_DEVICES and its like against what the line takes."""

from __future__ import annotations

from collections.abc import Mapping

from models.config import ServerConfig
from planner.violation import Severity, Violation

# CUDA's, and what ROCm reads.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visibility_violations(environment: Mapping[str, str], config: ServerConfig) -> list[Violation]:
    """Return what is wrong where the environment shows a server fewer GPUs than its ranks on a node take."""
    replicas = int(config.flag("dp_size", 1) or 1) if config.attn_dp_size == 1 else 1
    needed_gpus = int(config.flag("base_gpu_id", 0) or 0) + replicas * config.gpu_count // max(1, config.nnodes)
    violations = []
    for name in VARIABLES:
        devices = [part for part in environment.get(name, "").split(",") if part.strip()]
        if devices and devices[0].strip().lower() not in ("all", "none", "void") and len(devices) < needed_gpus:
            violations.append(
                Violation(
                    rule="visible-gpus",
                    severity=Severity.ERROR,
                    message=f"{name} shows the server {len(devices)} GPU(s); its ranks on a node take {needed_gpus}",
                    fix=f"name {needed_gpus} GPUs in {name}, or lower --tp-size",
                )
            )
    return violations
