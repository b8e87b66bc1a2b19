"""Watching GPUs while they work: at rest no card throttles, under a GEMM many do."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from statistics import median

from hwprobe.inventory.looks import Look, LookAt
from hwprobe.measure import MeasureTask, Runner, TaskOutcome
from hwprobe.profile import WorkingState

EVERY_S = 0.25
# Looks below this share of the strongest power are of a card that waits.
BUSY_SHARE = 0.7


class ThrottleWatch:
    """A runner around another that notes the state of every GPU during every task."""

    def __init__(self, runner: Runner, look: LookAt) -> None:
        self._runner, self._look_at = runner, look
        self._seen: dict[tuple[str, str], dict[int, None]] = {}
        self._looks: dict[tuple[int, str], list[Look]] = {}

    def __call__(self, task: MeasureTask) -> TaskOutcome:
        """Run the task, looking at its GPUs every quarter of a second."""
        finished = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(task, finished), daemon=True)
        watcher.start()
        try:
            return self._runner(task)
        finally:
            finished.set()
            watcher.join()

    def _watch(self, task: MeasureTask, finished: threading.Event) -> None:
        while True:
            self._note(task, self._look_at(task.visible))
            if finished.wait(EVERY_S):
                return

    def _note(self, task: MeasureTask, looks: dict[str, Look]) -> None:
        step = str(task.request.step)
        for place, uuid in zip(task.gpus, task.visible, strict=False):
            if uuid not in looks:
                continue
            self._looks.setdefault((place, step), []).append(looks[uuid])
            for reason in looks[uuid].throttled:
                self._seen.setdefault((reason, step), {})[place] = None

    def working(self, place: int) -> dict[str, WorkingState]:
        """Return the medians of a GPU's looks by measurement; the first of each is before any work and left out."""
        return {step: _state(looks[1:] or looks) for (at, step), looks in self._looks.items() if at == place}

    def remarks(self) -> Iterable[str]:
        """Yield one sentence per reason and measurement."""
        for (reason, step), places in self._seen.items():
            gpus = ", ".join(f"GPU {place}" for place in sorted(places))
            yield f"clocks were held down by {reason} while measuring {step}: {gpus}"


def _state(looks: Sequence[Look]) -> WorkingState:
    # A child spends its first seconds importing torch: looks at an idle card would halve a median of power.
    strongest = max((look.power_w or 0.0 for look in looks), default=0.0)
    busy = [look for look in looks if (look.power_w or 0.0) >= BUSY_SHARE * strongest]

    def middle(name: str) -> float | None:
        values = [getattr(look, name) for look in busy if getattr(look, name) is not None]
        return median(values) if values else None

    return WorkingState(
        looks=len(busy),
        sm_clock_mhz=middle("sm_clock_mhz"),
        power_w=middle("power_w"),
        temperature_c=middle("temperature_c"),
    )
