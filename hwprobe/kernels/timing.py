"""Timing work on a device: the clock of a CPU and of a GPU behind one face. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from hwprobe.kernels.fits import Timing, timing_of

Work = Callable[[], Any]

# Work too short to time by itself is repeated until one sample lasts about this long.
SAMPLE_S = 0.02
MOST_CALLS = 200
# Clocks rise from idle (345 MHz) to full within some tens of ms of work.
WARM_S = 0.2
# Queueing one kernel from Python takes this long at first guess; a sample whose queue took longer than the spin kernel
# held the stream back is taken again with a longer spin, this many times at most.
QUEUE_S_PER_CALL = 15e-6
QUEUE_TRIES = 4
LONGEST_SPIN_S = 0.05
# Spun once to see how many cycles pass in a second: 1.2 to 2.0 GHz by card, clock limit and temperature.
SPIN_CYCLES = 20_000_000


class Timer(Protocol):
    """One device: where tensors go, how work on it is timed and waited for."""

    device: torch.device
    name: str
    cache_bytes: int
    has_graphs: bool

    def free_bytes(self) -> int:
        """Return memory that may be used now."""
        ...

    def wait(self) -> None:
        """Return when all queued work is done."""
        ...

    def seconds(self, work: Work, calls: int) -> float:
        """Return the device's seconds per call over `calls` calls queued back to back."""
        ...

    def graph(self, work: Work) -> Work:
        """Return `work` as one launch: captured in a CUDA graph where the device has them."""
        ...


class CpuTimer:
    """The host's processor. Work is done when the call returns; there are no graphs."""

    has_graphs = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.name = "cpu"
        self.cache_bytes = last_level_cache_bytes()

    def free_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def wait(self) -> None:
        return None

    def seconds(self, work: Work, calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - begin) / calls

    def graph(self, work: Work) -> Work:
        return work


class CudaTimer:
    """One CUDA (or ROCm) device, timed by events while a spin kernel hides the cost of queueing."""

    has_graphs = True

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        self.name = str(properties.name)
        self.cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or 128 * 2**20
        self._spin_hz = 0.0
        self._queue_s = QUEUE_S_PER_CALL

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self, work: Work, calls: int) -> float:
        with torch.cuda.device(self.device):
            device_s = 0.0
            for _ in range(QUEUE_TRIES):
                spin_s = min(LONGEST_SPIN_S, calls * self._queue_s)
                device_s, queue_s = self._queued(work, calls, spin_s)
                if queue_s <= spin_s or spin_s >= LONGEST_SPIN_S:
                    break
                self._queue_s = 1.5 * queue_s / calls
            return device_s / calls

    def _queued(self, work: Work, calls: int, spin_s: float) -> tuple[float, float]:
        """Return the device's seconds for `calls` calls behind a spin, and the host's seconds to queue them."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        cycles = int(spin_s * self.spin_hz())
        begin_s = time.perf_counter()
        torch.cuda._sleep(cycles)
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        queue_s = time.perf_counter() - begin_s
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3, queue_s

    def spin_hz(self) -> float:
        """Return the cycles per second of the spin kernel on this card, measured once (the second of two spins)."""
        if not self._spin_hz:
            passed_ms = 0.0
            for _ in range(2):  # the first wakes the clocks
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                torch.cuda._sleep(SPIN_CYCLES)
                end.record()
                end.synchronize()
                passed_ms = float(begin.elapsed_time(end))
            self._spin_hz = SPIN_CYCLES / max(passed_ms / 1e3, 1e-6)
        return self._spin_hz

    def graph(self, work: Work) -> Work:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries allocate their workspaces outside the capture
                work()
                work()
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            # Only this thread is held to the rules of capture: NCCL's watchdog queries events from another.
            with torch.cuda.graph(captured, capture_error_mode="thread_local"):
                work()
        replay: Work = captured.replay
        return replay


def timer_for(device: str, index: int = 0) -> Timer:
    """Return the timer of "cpu" or "cuda"."""
    return CpuTimer() if device == "cpu" else CudaTimer(index)


def time_work(timer: Timer, work: Work, *, samples: int, warm_s: float = WARM_S) -> Timing:
    """Warm up, then time `work`: the median of `samples` samples, each of enough calls to be timed well."""
    once = warm_up(timer, work, warm_s)
    calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_S / once)))
    return timing_of([timer.seconds(work, calls) for _ in range(samples)])


def warm_up(timer: Timer, work: Work, warm_s: float) -> float:
    """Run `work` for `warm_s` seconds, at least twice (the first call may compile). Returns its last time."""
    work()
    timer.wait()
    begin = time.perf_counter()
    while True:
        once = timer.seconds(work, 1)
        if time.perf_counter() - begin >= warm_s:
            return once


def last_level_cache_bytes() -> int:
    """Return the size of the CPU's largest cache as Linux tells it, 32 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1))
    return max(sizes, default=32 * 2**20)


def random_tensor(count: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Return `count` random numbers, -0.5 to 0.5 or any integer of the type.

    Zeros would flatter: they draw less power and run up to 13 % faster.

    One random block is repeated, since drawing gigabytes takes longer than measuring with them.
    """
    drawn = min(count, 2**22)
    if dtype.is_floating_point:
        block = torch.rand(drawn, device=device).sub_(0.5).to(dtype)
    else:  # rounded, numbers below 1 would all be 0
        kind = torch.iinfo(dtype)
        block = torch.randint(kind.min, kind.max + 1, (drawn,), dtype=dtype, device=device)
    tensor = torch.empty(count, dtype=dtype, device=device)
    for begin in range(0, count, block.numel()):
        part = tensor[begin : begin + block.numel()]
        part.copy_(block[: part.numel()])
    return tensor
