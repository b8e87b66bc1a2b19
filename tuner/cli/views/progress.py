"""What long commands share: a progress bar on a terminal that leaves nothing behind, and is silent when piped."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class ProgressScreen:
    """A screen with one bar, alive within its context."""

    def __init__(self, screen: Console, task: str, *columns: ProgressColumn, total: int | None) -> None:
        self._screen = screen
        self._progress = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self._bar = self._progress.add_task(task, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
