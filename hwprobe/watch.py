"""Watching clocks while GPUs work: at rest no card throttles, under a GEMM many do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from hwprobe.measure import MeasureTask, Runner, TaskOutcome

# Reads what holds the clocks down, by uuid.
Reader = Callable[[tuple[str, ...]], dict[str, tuple[str, ...]]]
EVERY_S = 0.25


class ThrottleWatch:
    """A runner around another that notes which reasons held which GPU's clocks down during which task."""

    def __init__(self, runner: Runner, reader: Reader) -> None:
        self._runner, self._reader = runner, reader
        self._seen: dict[tuple[str, str], dict[int, None]] = {}

    def __call__(self, task: MeasureTask) -> TaskOutcome:
        """Run the task, looking at its GPUs every quarter of a second."""
        done = threading.Event()
        watcher = threading.Thread(target=self._look, args=(task, done), daemon=True)
        watcher.start()
        try:
            return self._runner(task)
        finally:
            done.set()
            watcher.join()

    def _look(self, task: MeasureTask, done: threading.Event) -> None:
        while True:
            self._note(task, self._reader(task.visible))
            if done.wait(EVERY_S):
                return

    def _note(self, task: MeasureTask, reasons: dict[str, tuple[str, ...]]) -> None:
        for place, uuid in zip(task.gpus, task.visible, strict=False):
            for reason in reasons.get(uuid, ()):
                self._seen.setdefault((reason, str(task.request.step)), {})[place] = None

    def remarks(self) -> Iterable[str]:
        """Yield one sentence per reason and measurement."""
        for (reason, step), places in self._seen.items():
            gpus = ", ".join(f"GPU {place}" for place in sorted(places))
            yield f"clocks were held down by {reason} while measuring {step}: {gpus}"
