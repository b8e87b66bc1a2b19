"""Running servers as a page looks at them: one scrape a visit, and the last minutes of scrapes as a window."""

from __future__ import annotations

import os
from collections import deque

from hwprobe.errors import InputError
from tuner.advise.look import AdviseAnswer, AdviseQuestion, look
from tuner.bench.server_side import Address
from tuner.scrape.collect import Read, window_of
from tuner.scrape.samples import Samples
from tuner.scrape.source import Facts, LiveSource

# Scrapes that make the window: three minutes of a page that looks every fifteen seconds.
KEPT = 12
URLS, KEY = "SGTUNE_ADVISE_URLS", "SGTUNE_API_KEY"


def urls() -> list[str]:
    """Return the servers that `sgtune dashboard --url` named: a page may name no other."""
    return [url for url in os.environ.get(URLS, "").split() if url]


class RollingWindow:
    """One server and its last scrapes."""

    def __init__(self, url: str) -> None:
        """Raises InputError for what is no address."""
        self._source = LiveSource(address=Address.parse(url), key=os.environ.get(KEY) or None)
        self._scrapes: deque[Samples] = deque(maxlen=KEPT)

    def read(self) -> Read:
        """Ask the server once more."""
        try:
            facts = self._source.facts()
        except InputError as error:
            self._scrapes.clear()
            return [(Facts(name=self._source.name, notes=(str(error),)), None)]
        scrape = self._source.scrape()
        if scrape is not None:
            self._scrapes.append(scrape)
        return [(facts, window_of(list(self._scrapes)))]


def looked_at(windows: list[RollingWindow]) -> AdviseAnswer:
    """Return what is to be said of all servers now."""
    return look([each for window in windows for each in window.read()], AdviseQuestion())
