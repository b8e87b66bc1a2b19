"""What nodes a Slurm cluster has, by its own sinfo; inside an allocation those of the allocation."""

from __future__ import annotations

import os
import re
import subprocess

from hwprobe.errors import InputError, SgtuneError
from tuner.cluster.found_nodes import READY, FoundCluster, FoundNode, by_name

ASK_S = 30.0
FORMAT = "%N|%o|%G|%c|%m|%T"
# gpu:h200:8(S:0-1), gpu:8, gpu:h200:4,gpu:h100:4, (null)
GRES = re.compile(r"gpu:(?:(?P<type>[A-Za-z][\w.-]*):)?(?P<count>\d+)")
# States in which jobs run or may run; a trailing * means that the node does not answer.
RUNNING = frozenset({"idle", "mixed", "allocated", "completing"})


def nodes_of_slurm() -> FoundCluster:
    """Ask Slurm. Raises InputError where there is none, SgtuneError where it does not answer."""
    lines = _ask("sinfo", "--Node", "--noheader", "--format", FORMAT)
    listed = os.environ.get("SLURM_JOB_NODELIST")
    ours = set(_ask("scontrol", "show", "hostnames", listed)) if listed else None
    nodes = [_node(line.split("|")) for line in lines]
    return FoundCluster(source="slurm", nodes=by_name([n for n in nodes if ours is None or n.name in ours]))


def _node(parts: list[str]) -> FoundNode:
    if len(parts) != 6:
        raise SgtuneError(f"sinfo answered '{'|'.join(parts)[:100]}', not the six fields asked for")
    name, address, gres, cpus, memory_mib, state = parts
    cards = [(match["type"] or "", int(match["count"])) for match in GRES.finditer(gres)]
    types = {kind for kind, _ in cards}
    return FoundNode(
        name=name,
        address=address,
        gpus=sum(count for _, count in cards),
        gpu=types.pop() if len(types) == 1 else "",
        cpus=int(cpus) if cpus.isdecimal() else None,
        memory_gib=int(memory_mib) / 1024.0 if memory_mib.isdecimal() else None,
        state=READY if state in RUNNING else state,
    )


def _ask(*command: str) -> list[str]:
    """Return the lines that a program of Slurm's prints."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    except FileNotFoundError:
        raise InputError(f"--from slurm: no '{command[0]}' here; ask on a machine of the Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise SgtuneError(f"{command[0]} gave no answer within {ASK_S:.0f} s") from None
    if process.returncode:
        printed = (process.stderr.strip() or process.stdout.strip()).splitlines()
        raise SgtuneError(f"{command[0]} failed: {printed[-1] if printed else f'exit code {process.returncode}'}")
    return [line.strip() for line in process.stdout.splitlines() if line.strip()]
