"""The kernel's own count of processes it killed for memory: the only proof that a SIGKILL was a host OOM."""

from __future__ import annotations

import re
from pathlib import Path

COUNTERS = ("sys/fs/cgroup/memory.events", "sys/fs/cgroup/memory/memory.oom_control", "proc/vmstat")


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes were killed for memory: of the cgroup where it counts, else of the host; or None."""
    for name in COUNTERS:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except OSError:
            continue
        counter = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        if counter:
            return int(counter.group(1))
    return None
