"""The gate before a launch: GPUs idle, reachable and ours alone, and room for shared memory. Never kills anything."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from hwprobe.errors import InputError
from hwprobe.holds import Held, Hold, own_folder
from hwprobe.inventory.nvml import Inventory, NvmlGpu, read_inventory
from hwprobe.plain_text import one_line
from tuner.seam import FailureKind, LaunchFailed

IDLE_WAIT_S = 60.0
POLL_S = 1.0
# A driver keeps a few hundred MiB on an idle GPU; a context of anybody takes more than this.
IDLE_MIB = 1024.0
# NCCL and SGLang's own queues take some tens of MiB per rank.
LEAST_SHM_MIB = 256.0
LOCKS = "sgtune-gpus"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a launch needs of the machine; a machine without GPUs (or NVML) needs nothing of it."""

    read: Callable[[], Inventory] = read_inventory
    shm: Path = Path("/dev/shm")
    wait_s: float = IDLE_WAIT_S

    def pass_through(self) -> float:
        """Wait until every GPU is idle; return the seconds waited.

        Raises LaunchFailed (gpu_lost, gpu_busy with pid, user and memory of each holder, shm_full).
        """
        self.check_gpus()
        self._check_shm()
        started = time.monotonic()
        while busy := [text for gpu in self.read().gpus if (text := _busy(gpu))]:
            waited = time.monotonic() - started
            if waited >= self.wait_s:
                raise LaunchFailed(
                    FailureKind.GPU_BUSY,
                    f"waited {waited:.0f} s for the GPUs: {'; '.join(busy)}; stop what is yours, or wait",
                    waited,
                )
            time.sleep(min(POLL_S, self.wait_s / 4))
        return time.monotonic() - started

    def wait_released(self) -> bool:
        """Wait for memory to come back after a stop, which is asynchronous; say whether all of it did."""
        try:
            self.pass_through()
        except LaunchFailed:
            return False
        return True

    def check_gpus(self) -> None:
        """Raise LaunchFailed (gpu_lost) if the driver cannot reach a GPU it counts."""
        lost = self.read().lost
        if lost:
            raise LaunchFailed(FailureKind.GPU_LOST, f"the driver lost {'; '.join(lost)}; see dmesg for Xid", 0.0)

    def _check_shm(self) -> None:
        if not self.shm.is_dir():
            return
        free_mib = psutil.disk_usage(str(self.shm)).free / 2**20
        if free_mib < LEAST_SHM_MIB:
            raise LaunchFailed(
                FailureKind.SHM_FULL,
                f"{self.shm} has {free_mib:.0f} MiB left, {LEAST_SHM_MIB:.0f} are needed: remove what killed servers "
                "left there, or give the container more (--shm-size 32g)",
                0.0,
            )


def _busy(gpu: NvmlGpu) -> str | None:
    state = gpu.state
    used = (state.memory_used_mib or 0.0) - (state.memory_reserved_mib or 0.0)
    if used <= IDLE_MIB:
        return None
    holders = [
        f"process {holder.pid} '{holder.name}' of {_user(holder.pid)}"
        + (f" holds {holder.used_mib / 1024:.1f} GiB" if holder.used_mib else "")
        for holder in state.holders
    ]
    return f"GPU {gpu.index}: {', '.join(holders) or f'{used / 1024:.1f} GiB in use by a process NVML cannot name'}"


def _user(pid: int) -> str:
    try:
        return psutil.Process(pid).username()
    except psutil.Error:
        return "an unknown user"


class GpuLocks:
    """A lock per GPU, held for a whole run: two tuners of a user never measure on the same GPU.

    The kernel lets go of them when this process ends, however it ends. Of another user's tuner the gate sees the
    memory it holds.
    """

    def __init__(self, uuids: Sequence[str], folder: Path | None = None, what: str = "GPU") -> None:
        """Take the locks; `what` they are for, in words. Raises InputError naming the holder's pid and host."""
        if folder is None:
            folder = own_folder(LOCKS) if uuids else Path()
        saying = f"process {os.getpid()} on {socket.gethostname()}"
        with ExitStack() as undo:
            for uuid in uuids:
                try:
                    undo.callback(Hold(folder / f"{uuid}.lock", saying).release)
                except Held as other:
                    holder = one_line(other.said) or "its holder left no name"
                    held_by = f"{what} {uuid} is in use by another sgtune: {holder}"
                    raise InputError(f"{held_by}; wait for it to end") from None
                except OSError as error:
                    raise InputError(f"cannot lock {what} {uuid} in '{folder}': {error.strerror or error}") from error
            self._held = undo.pop_all()

    def release(self) -> None:
        """Let go of all of them."""
        self._held.close()
