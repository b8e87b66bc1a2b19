"""How fast GPUs reach each other by copies: every pair alone, both ways at once, and all of them together."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from hwprobe.kernels.fits import timing_of
from hwprobe.kernels.report import Emit, Report, nowhere, rate
from hwprobe.kernels.timing import Timer, Work, random_tensor, time_work
from hwprobe.profile import Quantity

# torch's copy between two GPUs waits for both of them first and makes both wait after it: 8 to 20 us, which 1 GiB hides
# and 4 KiB shows.
LARGE_BYTES = 2**30
QUICK_LARGE_BYTES = 256 * 2**20
SMALL_BYTES = 4096
PAIR_WARM_S = 0.02
# Copies that run at once are timed by the host's clock, so many rounds of them back to back.
ROUNDS = 4

Pair = tuple[int, int]
Lane = Callable[[], contextlib.AbstractContextManager[None]]


class _Cells:
    """Three square matrices that fill cell by cell, and the pairs they lack."""

    def __init__(self, count: int) -> None:
        self.one_way: dict[Pair, float] = {}
        self.small: dict[Pair, float] = {}
        self.both: dict[Pair, float] = {}
        self.missing: list[str] = []
        self._count = count

    def report(self, all_to_all: Quantity | None = None) -> Report:
        def matrix(cells: dict[Pair, float]) -> tuple[tuple[float | None, ...], ...]:
            places = range(self._count)
            return tuple(tuple(cells.get((row, column)) for column in places) for row in places)

        return Report(
            p2p_gb_s=matrix(self.one_way),
            p2p_latency_us=matrix(self.small),
            p2p_both_gb_s=matrix(self.both) if self.both else None,
            all_to_all_gb_s=all_to_all,
            missing=tuple(self.missing),
        )


def measure_p2p(
    timers: Sequence[Timer], *, quick: bool, large_bytes: int | None = None, emit: Emit = nowhere
) -> Report:
    """Measure copies between devices in GB/s: one way, both ways at once (the sum), and all to all at once.

    `p2p_latency_us` is the time of a 4 KiB copy by torch, which is mostly its barrier between the two GPUs: no latency
    of the link. A pair without direct access stays empty: its copies would go through the host.
    """
    size = large_bytes or (QUICK_LARGE_BYTES if quick else LARGE_BYTES)
    samples = 3 if quick else 7
    buffers = [random_tensor(size, torch.uint8, timer.device) for timer in timers]
    targets = [torch.empty_like(buffer) for buffer in buffers]
    cells = _Cells(len(timers))

    def copy(pair: Pair, first: int, count: int) -> Work:
        source_slice, target_slice = buffers[pair[0]][first : first + count], targets[pair[1]][first : first + count]
        return partial(target_slice.copy_, source_slice, non_blocking=True)

    def alone(pair: Pair, count: int) -> float:
        return time_work(timers[pair[0]], copy(pair, 0, count), samples=samples, warm_s=PAIR_WARM_S).seconds

    for pair in itertools.permutations(range(len(timers)), 2):
        if not _reaches(timers[pair[0]], timers[pair[1]]):
            cells.missing.append(f"GPU {pair[0]} to GPU {pair[1]}: no direct access")
            continue
        cells.one_way[pair] = size / alone(pair, size) / 1e9
        cells.small[pair] = alone(pair, SMALL_BYTES) * 1e6
        emit(cells.report())
    for a, b in itertools.combinations(range(len(timers)), 2):
        ways = [pair_way for pair_way in ((a, b), (b, a)) if pair_way in cells.one_way]
        if len(ways) == 2:
            seconds = timing_of(
                _together(timers, {pair_way: copy(pair_way, 0, size) for pair_way in ways}, samples)
            ).seconds
            cells.both[a, b] = cells.both[b, a] = 2 * size / seconds / 1e9
            emit(cells.report())
    peers = len(timers) - 1
    if peers < 2 or len(cells.one_way) < peers * (peers + 1):
        return cells.report()
    share = size // peers
    works = {
        pair_way: copy(pair_way, share * ((pair_way[0] - pair_way[1]) % len(timers) - 1), share)
        for pair_way in cells.one_way
    }
    timing = timing_of(_together(timers, works, samples))
    source = f"every GPU to all {peers} others at once, {share / 2**20:.0f} MiB each; what one GPU sends"
    return cells.report(rate(peers * share / 1e9, timing, source))


def _reaches(source: Timer, target: Timer) -> bool:
    if source.device.type == "cpu":
        return True
    return bool(torch.cuda.can_device_access_peer(source.device, target.device))


def _together(timers: Sequence[Timer], works: dict[Pair, Work], samples: int) -> list[float]:
    """Return seconds of one round of copies that run at the same time; the first sample, a warm-up, is left out."""
    lanes = [(work, _lane(timers[pair[0]], timers[pair[1]])) for pair, work in works.items()]
    rounds_s = []
    for _ in range(samples + 1):
        for timer in timers:
            timer.wait()
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            for work, lane in lanes:
                with lane():
                    work()
        for timer in timers:
            timer.wait()
        rounds_s.append((time.perf_counter() - begin) / ROUNDS)
    return rounds_s[1:]


def _lane(source: Timer, target: Timer) -> Lane:
    """Return a context in which a copy has streams of its own on both devices.

    On the devices' common streams torch's barriers would make the two directions wait for each other.
    """
    if source.device.type == "cpu":
        return contextlib.nullcontext
    streams = [torch.cuda.Stream(device=timer.device) for timer in (source, target)]

    @contextlib.contextmanager
    def own() -> Iterator[None]:
        with torch.cuda.stream(streams[0]), torch.cuda.stream(streams[1]):
            yield

    return own
