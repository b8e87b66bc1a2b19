"""Just enough of torch.cuda for CudaTimer without a GPU: tensors lie on the CPU, the clock is scripted."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hwprobe.kernels.timing import CudaTimer

MIB = 2**20


class FakeCuda:
    """A card of `hertz` on which queueing one piece of work takes the host `queue_s` and running it `run_s`.

    The host's clock is `host_s`, the device is busy until `device_s`: work starts when it is queued and the device is
    free. `log` keeps what was called, `spins` the seconds of every spin.
    """

    def __init__(self, *, hertz: float = 1.98e9, queue_s: float = 5e-6, run_s: float = 50e-6, l2_mib: int = 60) -> None:
        self.hertz, self.queue_s, self.run_s, self.l2_mib = hertz, queue_s, run_s, l2_mib
        self.host_s = self.device_s = 0.0
        self.log: list[str] = []
        self.spins: list[float] = []

    def work(self) -> None:
        self.log.append("work")
        self.host_s += self.queue_s
        self._run(self.run_s)

    def spin(self, cycles: int) -> None:
        self.log.append("spin")
        self.spins.append(cycles / self.hertz)
        self._run(cycles / self.hertz)

    def _run(self, seconds: float) -> None:
        self.device_s = max(self.device_s, self.host_s) + seconds

    def install(self, patch: pytest.MonkeyPatch) -> FakeCuda:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("record")
                self.at = max(fake.device_s, fake.host_s)

            def synchronize(self) -> None:
                fake.host_s = max(fake.host_s, fake.device_s)

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        class Graph:
            def replay(self) -> None:
                fake.log.append("replay")
                fake.work()

        properties = SimpleNamespace(name="fake", L2_cache_size=self.l2_mib * MIB)
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "get_device_properties": lambda index: properties,
            "device": lambda index: contextlib.nullcontext(),
            "stream": lambda side: contextlib.nullcontext(),
            "graph": lambda graph, capture_error_mode: contextlib.nullcontext(),
            "current_stream": lambda: stream,
            "Stream": lambda: stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "_sleep": fake.spin,
            "synchronize": lambda device: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(time, "perf_counter", lambda: fake.host_s)
        return self


class GraphTimer(CudaTimer):
    """A CudaTimer whose tensors lie on the CPU and whose graphs run: counts what a replay runs."""

    def __init__(self, l2_mib: int = 1) -> None:
        self.device = torch.device("cpu")
        self.name, self.cache_bytes = "graphs on a CPU", l2_mib * MIB
        self.graphs: list[Any] = []

    def free_bytes(self) -> int:
        return 2**30

    def wait(self) -> None:
        return None

    def spin_hz(self) -> float:
        return 1.98e9

    def seconds(self, work: Any, calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - begin) / calls

    def graph(self, work: Any) -> Any:
        self.graphs.append(work)
        return work
