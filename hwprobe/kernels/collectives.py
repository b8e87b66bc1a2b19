"""How fast all GPUs add up a message together: NCCL (gloo on a CPU), and torch's symmetric memory."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from hwprobe.files import append_line
from hwprobe.holds import scratch_folder
from hwprobe.kernels.fits import timing_of
from hwprobe.kernels.report import Emit, Report, duration_us, nowhere
from hwprobe.kernels.timing import Timer, Work, random_tensor, timer_for
from hwprobe.profile import AllReduce

# A token of DeepSeek-V3 is 7168 BF16 numbers: what one of 1 to 8192 running requests adds to a message.
TOKEN_BYTES = 14336
TOKENS = (1, 4, 16, 64, 256, 1024, 8192)
QUICK_TOKENS = (1, 16, 256)
# All-reduces per graph, and graphs per sample: enough that the one copy that refreshes the data is lost among them.
PER_GRAPH = 20
# Sums over 8 ranks, 20 times over, grow by 8^20: the data start small enough to stay finite in BF16.
SMALL_NUMBERS = 1e-20
REPLAYS = 10
RENDEZVOUS = timedelta(seconds=120)
# How often the ranks' files are looked at for messages all have measured.
LOOK_S = 0.2


def measure_all_reduce(device: str, *, ranks: int, quick: bool, emit: Emit = nowhere) -> Report:
    """Measure all-reduce of decode-sized messages: one process a rank, the slowest rank's time counts.

    NCCL on GPUs, gloo on a CPU, in CUDA graphs. Ranks start some tens of ns apart within a graph; over 200 of them in a
    row that is lost. Raises RuntimeError (torch's) when a rank fails; what all ranks measured before was emitted.
    """
    return _ranks(RankTask(device=device, ranks=ranks, quick=quick, symmetric=False), emit)


def measure_symmetric(device: str, *, ranks: int, quick: bool, emit: Emit = nowhere) -> Report:
    """Measure torch's symmetric-memory all-reduces, where this torch and this fabric have them.

    A step of its own: a fabric fault hangs these kernels, and NCCL's figures must not hang with them.
    """
    if device != "cuda":
        return Report(missing=("symmetric memory: only GPUs have it",))
    return _ranks(RankTask(device=device, ranks=ranks, quick=quick, symmetric=True), emit)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTask:
    """What all ranks of one step are to do."""

    device: str
    ranks: int
    quick: bool
    symmetric: bool

    @property
    def sizes(self) -> list[int]:
        tokens = QUICK_TOKENS if self.quick or self.device == "cpu" else TOKENS
        return [TOKEN_BYTES * count for count in tokens]


def _ranks(ranks_task: RankTask, emit: Emit) -> Report:
    """Run all ranks and emit every message the moment all of them have measured it."""
    with scratch_folder("allreduce") as folder:
        with _temporary_files_in(folder):
            arguments = (ranks_task, str(folder))
            running = torch.multiprocessing.spawn(_rank, args=arguments, nprocs=ranks_task.ranks, join=False)
            emitted = 0
            try:
                while not running.join(timeout=LOOK_S):
                    so_far = _collected(folder, ranks_task.ranks)
                    if len(so_far.all_reduce) > emitted:
                        emitted = len(so_far.all_reduce)
                        emit(so_far)
            finally:  # a rank that fails raises here: what all had measured until then is told before
                emit(_collected(folder, ranks_task.ranks))
        return _collected(folder, ranks_task.ranks)


def _collected(folder: Path, ranks: int) -> Report:
    """Return the messages that every rank has written, and what rank 0 could not measure."""
    answers: list[dict[str, list[float]]] = []
    missing: list[str] = []
    for rank in range(ranks):
        path = folder / f"rank{rank}.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in lines]
        answers.append({record["name"]: record["samples"] for record in records if "name" in record})
        missing += [record["missing"] for record in records if rank == 0 and "missing" in record]
    complete = [name for name in answers[0] if all(name in answer for answer in answers)]
    points = tuple(_slowest(ranks, name, [answer[name] for answer in answers]) for name in complete)
    return Report(all_reduce=points, missing=tuple(dict.fromkeys(missing)))


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


def _rank(rank: int, ranks_task: RankTask, folder: str) -> None:
    """Be one rank: measure every size, append each one's samples to the rank's file at once."""
    timer = timer_for(ranks_task.device, rank)
    if ranks_task.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if ranks_task.device == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks_task.ranks,
        timeout=RENDEZVOUS,
        # Named, the device has its communicator now, and not within the first collective's time.
        device_id=timer.device if ranks_task.device == "cuda" else None,
    )
    path = Path(folder) / f"rank{rank}.jsonl"

    def note(**record: Any) -> None:
        append_line(path, json.dumps(record) + "\n", durable=False)

    for size in ranks_task.sizes:
        if not ranks_task.symmetric:
            note(name=f"{backend} {size}", samples=_samples(timer, _plain(timer, size), ranks_task.quick))
            continue
        for name, work in _symmetric(timer, size, note):
            try:
                note(name=f"{name} {size}", samples=_samples(timer, work, ranks_task.quick))
            except RuntimeError as error:  # a kernel this GPU or fabric lacks, on every rank alike
                if "CUDA error" in str(error):
                    raise
                note(missing=f"{name}, {size} bytes: {str(error).splitlines()[0]}")
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


def _symmetric(timer: Timer, size: int, note: Callable[..., None]) -> Iterator[tuple[str, Work]]:
    """Yield torch's symmetric-memory all-reduces: one-shot for small messages, two-shot, and multicast."""
    try:
        import torch.distributed._symmetric_memory as symmetric

        group = torch.distributed.group.WORLD.group_name
        data = symmetric.empty(size // 2, dtype=torch.bfloat16, device=timer.device)
        handle = symmetric.rendezvous(data, group)
        kernels = torch.ops.symm_mem
        named_kernels: list[tuple[str, Callable[[Any, str, str], Any]]] = [
            ("symm_mem one-shot", kernels.one_shot_all_reduce),
            ("symm_mem two-shot", kernels.two_shot_all_reduce_),
        ]
        if handle.multicast_ptr:
            named_kernels.append(("symm_mem multimem", kernels.multimem_all_reduce_))
    except (ImportError, AttributeError, RuntimeError) as error:
        note(missing=f"symmetric memory: {str(error).splitlines()[0]}")
        return
    fresh = random_tensor(size // 2, torch.bfloat16, timer.device).mul_(SMALL_NUMBERS)
    for name, kernel in named_kernels:

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
    samples_s = []
    for _ in range(5 if quick else 15):
        timer.wait()
        torch.distributed.barrier()
        samples_s.append(timer.seconds(ready, calls) / PER_GRAPH)
    return samples_s
