"""How fast GPUs reach each other: copies between all pairs, and all-reduce among all of them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hwprobe.holds import scratch_folder
from hwprobe.kernels.fits import timing_of
from hwprobe.kernels.report import Report, duration_us
from hwprobe.kernels.timing import Timer, Work, random_tensor, time_work, timer_for
from hwprobe.profile import AllReduce, Matrix

LARGE_BYTES = 256 * 2**20
QUICK_LARGE_BYTES = 64 * 2**20
SMALL_BYTES = 4096
PAIR_WARM_S = 0.02

# A token of DeepSeek-V3 is 7168 BF16 numbers: what one of 1 to 8192 running requests adds to a message.
TOKEN_BYTES = 14336
TOKENS = (1, 4, 16, 64, 256, 1024, 8192)
QUICK_TOKENS = (1, 16, 256)
# All-reduces per graph, and graphs per sample: enough that the one copy that refreshes the data is lost among them.
PER_GRAPH = 20
# Sums over 8 ranks, 20 times over, grow by 8^20: the data start small enough to stay finite in BF16.
SMALL_NUMBERS = 1e-20
REPLAYS = 10
RENDEZVOUS = timedelta(seconds=60)


def measure_p2p(timers: Sequence[Timer], *, quick: bool, large_bytes: int | None = None) -> Report:
    """Measure copies from every device to every other: GB/s of a large one, us of a 4 KiB one.

    A pair without direct access stays empty: its copies would go through the host.
    """
    size = large_bytes or (QUICK_LARGE_BYTES if quick else LARGE_BYTES)
    buffers = [random_tensor(size, torch.uint8, timer.device) for timer in timers]
    targets = [torch.empty_like(buffer) for buffer in buffers]
    missing: list[str] = []

    def seconds(source: int, target: int, count: int) -> float:
        here, there = buffers[source][:count], targets[target][:count]
        copy = partial(there.copy_, here, non_blocking=True)
        return time_work(timers[source], copy, samples=3 if quick else 7, warm_s=PAIR_WARM_S).seconds

    def pair(source: int, target: int) -> tuple[float, float] | None:
        if not _reaches(timers[source], timers[target]):
            missing.append(f"GPU {source} to GPU {target}: no direct access")
            return None
        return size / seconds(source, target, size) / 1e9, seconds(source, target, SMALL_BYTES) * 1e6

    places = range(len(timers))
    pairs = [[pair(row, column) if row != column else None for column in places] for row in places]
    return Report(p2p_gb_s=_half(pairs, 0), p2p_latency_us=_half(pairs, 1), missing=tuple(missing))


def _half(pairs: Sequence[Sequence[tuple[float, float] | None]], part: int) -> Matrix:
    return tuple(tuple(None if cell is None else cell[part] for cell in row) for row in pairs)


def _reaches(source: Timer, target: Timer) -> bool:
    if source.device.type == "cpu":
        return True
    return bool(torch.cuda.can_device_access_peer(source.device, target.device))


def measure_all_reduce(device: str, *, ranks: int, quick: bool) -> Report:
    """Measure all-reduce of decode-sized messages: one process a rank, the slowest rank's time counts.

    NCCL on GPUs, gloo on a CPU; torch's symmetric-memory kernels where they work. In CUDA graphs.
    Raises RuntimeError (torch's) when a rank fails.
    """
    with scratch_folder("allreduce") as folder:
        with _temporary_files_in(folder):
            torch.multiprocessing.spawn(_rank, args=(ranks, device, quick, str(folder)), nprocs=ranks, join=True)
        answers = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    merged = tuple(_slowest(ranks, name, [answer["times"][name] for answer in answers]) for name in answers[0]["times"])
    return Report(all_reduce=merged, missing=tuple(answers[0]["missing"]))


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have torch put the files in which its ranks report errors where they go with the rest, killed or not."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _slowest(ranks: int, name: str, samples: Sequence[Sequence[float]]) -> AllReduce:
    """Merge one message's samples: each sample takes as long as its slowest rank."""
    backend, size = name.rsplit(" ", maxsplit=1)
    timing = timing_of([max(sample) for sample in zip(*samples, strict=True)])
    source = f"{PER_GRAPH} all-reduces in a row, {ranks} ranks, slowest rank"
    return AllReduce(ranks=ranks, message_bytes=int(size), backend=backend, time_us=duration_us(timing, source))


def _rank(rank: int, ranks: int, device: str, quick: bool, folder: str) -> None:
    """Be one rank: measure every backend and size, write the samples to the folder."""
    timer = timer_for(device, rank)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks, timeout=RENDEZVOUS
    )
    times: dict[str, list[float]] = {}
    missing: list[str] = []
    sizes = [TOKEN_BYTES * tokens for tokens in (QUICK_TOKENS if quick or device == "cpu" else TOKENS)]
    for size in sizes:
        times[f"{backend} {size}"] = _samples(timer, _plain(timer, size), quick)
    if device == "cuda":
        for size in sizes:
            for name, work in _symmetric(timer, size, missing):
                try:
                    times[f"{name} {size}"] = _samples(timer, work, quick)
                except RuntimeError as error:  # a kernel this GPU or fabric lacks, on every rank alike
                    missing.append(f"{name}, {size} bytes: {str(error).splitlines()[0]}")
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps({"times": times, "missing": missing}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _plain(timer: Timer, size: int) -> Work:
    """Return the work of PER_GRAPH all-reduces through torch.distributed on refreshed data."""
    fresh = random_tensor(size // 2, torch.bfloat16, timer.device).mul_(SMALL_NUMBERS)
    data = fresh.clone()

    def work() -> None:
        data.copy_(fresh)
        for _ in range(PER_GRAPH):
            torch.distributed.all_reduce(data)

    return work


def _symmetric(timer: Timer, size: int, missing: list[str]) -> Iterator[tuple[str, Work]]:
    """Yield torch's symmetric-memory all-reduces: one-shot for small messages, two-shot, and multicast."""
    try:
        import torch.distributed._symmetric_memory as symmetric

        group = torch.distributed.group.WORLD.group_name
        data = symmetric.empty(size // 2, dtype=torch.bfloat16, device=timer.device)
        handle = symmetric.rendezvous(data, group)
        kernels = torch.ops.symm_mem
        found: list[tuple[str, Callable[[Any, str, str], Any]]] = [
            ("symm_mem one-shot", kernels.one_shot_all_reduce),
            ("symm_mem two-shot", kernels.two_shot_all_reduce_),
        ]
        if handle.multicast_ptr:
            found.append(("symm_mem multimem", kernels.multimem_all_reduce_))
    except (ImportError, AttributeError, RuntimeError) as error:
        said = f"symmetric memory: {str(error).splitlines()[0]}"
        if said not in missing:
            missing.append(said)
        return
    fresh = random_tensor(size // 2, torch.bfloat16, timer.device).mul_(SMALL_NUMBERS)
    for name, kernel in found:

        def work(kernel: Callable[[Any, str, str], Any] = kernel) -> None:
            data.copy_(fresh)
            for _ in range(PER_GRAPH):
                kernel(data, "sum", group)

        yield name, work


def _samples(timer: Timer, work: Work, quick: bool) -> list[float]:
    """Return seconds per all-reduce of several samples; all ranks make the same calls in the same order."""
    ready = timer.graph(work)
    ready()
    torch.distributed.barrier()
    # Ranks start some tens of us apart: over several replays that is lost.
    calls = REPLAYS if timer.has_graphs else 1
    found = []
    for _ in range(5 if quick else 15):
        timer.wait()
        torch.distributed.barrier()
        found.append(timer.seconds(ready, calls) / PER_GRAPH)
    return found
