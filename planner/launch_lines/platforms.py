"""What a platform sets for the servers below a mapping: LeaderWorkerSet, SkyPilot, OME, Dynamo, srt-slurm, Slurm."""

from __future__ import annotations

import re
from typing import Any

from planner.shell.values import Text


def variables_of(node: dict[Any, Any]) -> dict[str, Text]:
    """Return the variables that a mapping's platform gives the servers below it; empty for any other mapping."""
    for read in (_leader_worker_set, _skypilot, _ome, _dynamo, _srt_slurm):
        variables = read(node)
        if variables:
            return {name: Text(str(value)) for name, value in variables.items()}
    return {}


def slurm_variables(text: str) -> dict[str, Text]:
    """Return what Slurm sets by the #SBATCH lines of a batch script."""
    variables: dict[str, str] = {}
    lines = re.findall(r"^#SBATCH\s+(-[^#\n]*)", text, re.MULTILINE)
    for option, value in re.findall(r"(?<!\S)(--?[A-Za-z][\w-]*)(?:(?:=|\s+)([^\s-]\S*))?", "\n".join(lines)):
        number = re.match(r"\d+$", value) and value
        if option in ("-N", "--nodes") and number:
            variables |= {"SLURM_NNODES": value, "SLURM_JOB_NUM_NODES": value}
        elif option == "--ntasks-per-node" and number:
            variables["SLURM_NTASKS_PER_NODE"] = value
        elif option in ("-n", "--ntasks") and number:
            variables |= {"SLURM_NTASKS": value, "SLURM_NPROCS": value}
        elif option in ("--gres", "--gpus-per-node") and re.search(r"(\d+)$", value):
            gpus = re.search(r"(\d+)$", value)
            variables["SLURM_GPUS_ON_NODE"] = variables["SLURM_GPUS_PER_NODE"] = gpus[1] if gpus else value
        elif option in ("-G", "--gpus") and re.search(r"(\d+)$", value):
            variables["SLURM_GPUS"] = value.rpartition(":")[2]
    return {name: Text(value) for name, value in variables.items()}


def _leader_worker_set(node: dict[Any, Any]) -> dict[str, Any]:
    template = node.get("leaderWorkerTemplate") or node.get("leaderWorkerSet")  # the latter in a chart's values
    size = template.get("size") if isinstance(template, dict) else None
    return {"LWS_GROUP_SIZE": size} if isinstance(size, int) else {}


def _skypilot(node: dict[Any, Any]) -> dict[str, Any]:
    """Return SkyPilot's node and GPU counts: `num_nodes` and `resources: {accelerators: H200:8}`."""
    if not isinstance(node.get("run"), str):
        return {}
    resources = node.get("resources")
    accelerators = resources.get("accelerators") if isinstance(resources, dict) else None
    names = (
        list(accelerators.items())
        if isinstance(accelerators, dict)
        else [accelerators]
        if isinstance(accelerators, str)
        else accelerators or []
    )
    counts = {_accelerators(item) for item in names}
    variables: dict[str, Any] = {"SKYPILOT_NUM_NODES": node.get("num_nodes") or 1}
    if len(counts) == 1:
        variables["SKYPILOT_NUM_GPUS_PER_NODE"] = counts.pop()
    return variables


def _accelerators(item: Any) -> int:
    count = str(item[1] or 1) if isinstance(item, tuple) else str(item).rpartition(":")[2]
    return int(count) if count.isdecimal() and len(count) < 6 else 1


def _ome(node: dict[Any, Any]) -> dict[str, Any]:
    """Return the pods of an OME engine or decoder: a leader and `worker.size` workers."""
    worker = node.get("worker")
    if not isinstance(node.get("leader"), dict) or not isinstance(worker, dict):
        return {}
    size = worker.get("size")
    pods = (size if isinstance(size, int) else 1) + 1
    return {"LWS_GROUP_SIZE": pods, "OME_INSTANCE_POD_COUNT": pods}


def _dynamo(node: dict[Any, Any]) -> dict[str, Any]:
    """Return the nodes of a Dynamo service; its operator adds --nnodes and --node-rank itself."""
    multinode = node.get("multinode")
    nodes = multinode.get("nodeCount") if isinstance(multinode, dict) else None
    return {"NODES_dynamo": nodes} if isinstance(nodes, int) else {}


def _srt_slurm(node: dict[Any, Any]) -> dict[str, Any]:
    """Return the nodes of each srt-slurm worker: `prefill_nodes` over `prefill_workers`, and so on."""
    resources, backend = node.get("resources"), node.get("backend")
    if not isinstance(resources, dict) or not isinstance(backend, dict):
        return {}
    nodes_by_role = {}
    for role, prefix in (("prefill", "prefill"), ("decode", "decode"), ("aggregated", "agg")):
        nodes, workers = resources.get(f"{prefix}_nodes"), resources.get(f"{prefix}_workers") or 1
        if isinstance(nodes, int) and isinstance(workers, int) and nodes >= workers > 0 and nodes % workers == 0:
            nodes_by_role[f"NODES_{role}"] = nodes // workers
    return nodes_by_role
