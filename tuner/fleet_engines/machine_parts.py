"""What of one machine each server of a deployment gets: GPUs of its own, or CPU cores where there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"  # ROCm reads it, too


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePart:
    """A server's part of its machine: the GPUs that its environment shows it, the CPU cores it may run on.

    Neither: it sees the machine as it is.
    """

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that show a server its own GPUs and no others."""
        return {VISIBLE: ",".join(self.gpus)} if self.gpus else {}


# Returns each server's part of a machine, from the GPUs that each needs.
Divide = Callable[[Sequence[int]], list[MachinePart]]


def undivided(needs: Sequence[int]) -> list[MachinePart]:
    """Return parts that say nothing: servers that use no hardware of this machine."""
    return [MachinePart()] * len(needs)


def gpus_divided(needs: Sequence[int]) -> list[MachinePart]:
    """Give every server the GPUs after those of the server before it, of those that this process may see."""
    visible = [word.strip() for word in os.environ.get(VISIBLE, "").split(",") if word.strip()]
    names = visible or [str(index) for index in range(sum(needs))]
    parts, first = [], 0
    for need in needs:
        parts.append(MachinePart(gpus=tuple(names[first : first + need])))
        first += need
    return parts


def cores_divided(needs: Sequence[int], whole: int) -> list[MachinePart]:
    """Give every server CPU cores by the GPUs that it stands for, of the machine's `whole`, neighbours together.

    Where there are fewer cores than servers nobody is bound.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(needs):
        return undivided(needs)
    free, total = len(cores) - len(needs), max(whole, sum(needs))
    parts, first, so_far = [], 0, 0
    for place, need in enumerate(needs, start=1):
        so_far += need
        end = place + free * so_far // total
        parts.append(MachinePart(cores=tuple(cores[first:end])))
        first = end
    return parts
