"""What machines of a list are, each asked over ssh."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from hwprobe.plain_text import one_line
from tuner.cluster.found_nodes import FoundCluster, FoundNode, by_name

ASK_S = 30.0
AT_ONCE = 16
MOST_HOSTS = 1000
HOST = re.compile(r"(?:[\w.-]+@)?(?!-)[\w.:-]+")
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
QUESTION = (
    "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>/dev/null; "
    "echo ==; hostname; nproc; grep MemTotal: /proc/meminfo"
)


def hosts_of(text: str) -> list[str]:
    """Read hosts: a list with commas, or a file with one a line (what follows it, as in MPI's, is not read).

    Raises InputError for what is no host, and for none.
    """
    file = Path(text)
    lines = text.split(",")
    if file.is_file():
        lines = read_bytes(file, "host file", most_bytes=LAUNCH_FILE_BYTES).decode(errors="replace").splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    hosts = list(dict.fromkeys(parts[0] for parts in words if parts))
    wrong = next((host for host in hosts if not HOST.fullmatch(host)), None)
    if wrong is not None:
        raise InputError(f"--hosts: '{one_line(wrong, 60)}' is no host; write node0,node1 or name a file of them")
    if not hosts:
        raise InputError(f"--hosts {text}: no host is named there")
    if len(hosts) > MOST_HOSTS:
        raise InputError(f"--hosts {text}: {len(hosts)} hosts; at most {MOST_HOSTS} are asked")
    return hosts


def nodes_of_hosts(hosts: Sequence[str]) -> FoundCluster:
    """Ask every host what it is; one that does not answer says so in its state."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return FoundCluster(source="hosts", nodes=by_name(list(threads.map(_node, hosts))))


def _node(host: str) -> FoundNode:
    address = host.rpartition("@")[2]
    try:
        process = subprocess.run([*SSH, host, QUESTION], capture_output=True, text=True, timeout=ASK_S, check=False)
    except FileNotFoundError:
        raise InputError("--from hosts asks over ssh, and there is no 'ssh' here") from None
    except subprocess.TimeoutExpired:
        return FoundNode(name=address, address=address, gpus=0, state=f"no answer within {ASK_S:.0f} s")
    cards, parted, rest = process.stdout.partition("==\n")
    lines = rest.split("\n")
    if not parted or len(lines) < 3:
        lines_said = [line for line in process.stderr.splitlines() if line.strip()]
        return FoundNode(
            name=address, address=address, gpus=0, state=one_line(lines_said[-1] if lines_said else "no answer", 200)
        )
    named = [line.rpartition(",") for line in cards.splitlines() if line.strip()]
    names = {name.strip() for name, _, _ in named}
    memory = re.search(r"\d+", lines[2])
    mib = named[0][2].strip() if named else ""
    return FoundNode(
        name=lines[0].strip() or address,
        address=address,
        gpus=len(named),
        gpu=names.pop() if len(names) == 1 else "",
        gpu_memory_mib=float(mib) if mib.isdecimal() else None,
        cpus=int(lines[1]) if lines[1].strip().isdecimal() else None,
        memory_gib=int(memory[0]) / 2**20 if memory else None,
    )
