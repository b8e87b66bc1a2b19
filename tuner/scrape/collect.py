"""Collect: one window of scrapes for each server asked for, from whatever source."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hwprobe.errors import InputError
from tuner.scrape.history import Prometheus
from tuner.scrape.samples import Samples, ScrapeWindow
from tuner.scrape.source import Facts, LiveSource, SavedSource

# Scrapes of one watch: the levels between are means of so many.
SCRAPES = 12
SHORTEST_PAUSE_S = 1.0
MOST_AT_ONCE = 16

Read = list[tuple[Facts, ScrapeWindow | None]]


def window_of(scrapes: Sequence[Samples]) -> ScrapeWindow | None:
    """Return scrapes, oldest first, as a window; None where there are none."""
    if not scrapes:
        return None
    if len(scrapes) == 1:
        return ScrapeWindow(after=scrapes[0])
    return ScrapeWindow(after=scrapes[-1], before=scrapes[0], between=tuple(scrapes[1:-1]))


@dataclass(slots=True)
class Watch:
    """Running servers, watched for `seconds` (0: one scrape). `heard` is told how far it is, in seconds."""

    sources: Sequence[LiveSource]
    seconds: float
    heard: Callable[[float], None] = lambda _: None

    def read(self) -> Read:
        """Ask all servers at once, again and again until the time is over.

        A server that does not answer is an answer of its own, but where none does InputError is raised.
        """
        with ThreadPoolExecutor(max_workers=min(MOST_AT_ONCE, len(self.sources))) as pool:
            facts = list(pool.map(_facts, self.sources))
            if all(isinstance(each, InputError) for each in facts):
                raise next(each for each in facts if isinstance(each, InputError))
            answering = [
                (source, each)
                for source, each in zip(self.sources, facts, strict=True)
                if not isinstance(each, InputError)
            ]
            rounds: list[list[Samples | None]] = [[] for _ in answering]
            for scrapes in self._rounds(pool, [source for source, _ in answering]):
                for scrapes_of, scrape in zip(rounds, scrapes, strict=True):
                    scrapes_of.append(scrape)
            read: Read = [
                (each, window_of([scrape for scrape in scrapes_of if scrape is not None]))
                for (_, each), scrapes_of in zip(answering, rounds, strict=True)
            ]
        gone = [
            (Facts(name=source.name, notes=(str(each),)), None)
            for source, each in zip(self.sources, facts, strict=True)
            if isinstance(each, InputError)
        ]
        return [*read, *gone]

    def _rounds(self, pool: ThreadPoolExecutor, sources: list[LiveSource]) -> list[list[Samples | None]]:
        began = time.monotonic()
        pause_s = max(SHORTEST_PAUSE_S, self.seconds / SCRAPES)
        rounds = [list(pool.map(LiveSource.scrape, sources))]
        due = began
        while self.seconds > 0 and time.monotonic() - began < self.seconds and any(rounds[0]):
            due = min(due + pause_s, began + self.seconds)
            while (pause_left_s := due - time.monotonic()) > 0:
                self.heard(time.monotonic() - began)
                time.sleep(min(pause_left_s, 1.0))
            rounds.append(list(pool.map(LiveSource.scrape, sources)))
        return rounds


def _facts(source: LiveSource) -> Facts | InputError:
    try:
        return source.facts()
    except InputError as error:
        return error


def of_files(source: SavedSource) -> Read:
    """Return saved scrapes of one server."""
    return [(source.facts(), window_of(source.scrapes()))]


def of_history(prometheus: Prometheus, window_s: float, sources: Sequence[LiveSource], default_facts: Facts) -> Read:
    """Return what a Prometheus server holds of every target, and what the servers named say of themselves.

    A target is the server named when host and port are the same, or when there is one of each. `default_facts` are
    those of a target without a named server.
    """
    history = prometheus.history(window_s, time.time())
    facts = {source.name: source.facts() for source in sources}
    if len(history) == 1 and len(facts) == 1:
        scrapes, own_facts = next(iter(history.values())), next(iter(facts.values()))
        return [(own_facts, window_of(scrapes))]
    missing = [name for name in facts if name not in history]
    if missing:
        raise InputError(
            f"--prometheus knows no target {missing[0]}; its targets of SGLang: {', '.join(sorted(history))[:200]}"
        )
    names = list(facts) or list(history)
    return [(facts.get(name, replace(default_facts, name=name)), window_of(history[name])) for name in names]
