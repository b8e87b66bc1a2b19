"""Samples: what one scrape of /metrics says, read from Prometheus's text with bounds on everything."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

PREFIX = "sglang:"
# A server of 64 ranks with all its schedulers shown has some 50,000 lines.
MOST_LINES, LONGEST_LINE = 200_000, 4096
LARGEST = 1e18  # beyond any figure of a server's life
# Names by which other engines begin theirs.
OTHER_ENGINES = {
    "vllm:": "vLLM", "tgi_": "TGI", "trtllm_": "TensorRT-LLM", "nv_trt_llm_": "TensorRT-LLM", "lmdeploy:": "LMDeploy",
    "llamacpp:": "llama.cpp", "ollama_": "Ollama", "aphrodite:": "Aphrodite",
}  # fmt: skip

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Values by metric (without SGLang's prefix) and labels, at `time_s` (a clock that only the scrapes share).

    `engine` is who speaks: "SGLang", the name of another engine, or "" where nothing tells.
    """

    time_s: float
    series: Mapping[str, Mapping[Labels, float]]
    engine: str = "SGLang"

    def __contains__(self, name: str) -> bool:
        return name in self.series

    def total(self, name: str, **match: str) -> float | None:
        """Return the sum over all series of a metric whose labels match; None where it is not there."""
        values = [value for labels, value in self.series.get(name, {}).items() if matches(labels, match)]
        return sum(values) if values else None

    def largest(self, name: str) -> float | None:
        """Return the largest of a metric's series."""
        return max(self.series.get(name, {}).values(), default=None)

    def by_rank(self, name: str) -> dict[int, float]:
        """Return a metric by attention-DP rank; rank 0 alone where the server has no such ranks."""
        ranks: dict[int, float] = {}
        for labels, value in self.series.get(name, {}).items():
            text = dict(labels).get("dp_rank", "0")
            rank = int(text) if text.isdecimal() and len(text) < 5 else 0
            ranks[rank] = ranks.get(rank, 0.0) + value
        return ranks


def matches(labels: Labels, match: Mapping[str, str]) -> bool:
    """Say whether labels hold every pair of `match`."""
    return not match or match.items() <= dict(labels).items()


def read_samples(text: str, time_s: float) -> Samples:
    """Read an exposition. What does not parse is left out; never raises for what a server wrote."""
    lines = [line for line in text.splitlines()[:MOST_LINES] if len(line) <= LONGEST_LINE]
    series: dict[str, dict[Labels, float]] = {}
    for name, labels, value in _parsed([line for line in lines if line.startswith(PREFIX)]):
        if abs(value) < LARGEST:  # NaN is not
            series.setdefault(name.removeprefix(PREFIX), {})[labels] = value
    return Samples(time_s=time_s, series=series, engine=_engine(lines) if not series else "SGLang")


def _parsed(lines: list[str]) -> Iterable[tuple[str, Labels, float]]:
    """Yield samples; where one line spoils the whole, each line is read alone."""
    from prometheus_client.parser import text_string_to_metric_families  # 0.1 s to load

    def read(text: str) -> list[tuple[str, Labels, float]]:
        return [
            (sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    try:
        yield from read("\n".join(lines) + "\n")
        return
    except UNREADABLE:
        pass
    for line in lines:
        try:
            yield from read(line + "\n")
        except UNREADABLE:
            continue


# What the parser raises for text that is no exposition.
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


def _engine(lines: list[str]) -> str:
    for line in lines:
        match = _NAME.match(line.removeprefix("# TYPE ").removeprefix("# HELP "))
        if match is None:
            continue
        for prefix, engine in OTHER_ENGINES.items():
            if match[0].startswith(prefix):
                return engine
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """A histogram over a window: how many, their mean, and the counts below each bound (cumulative)."""

    count: float
    mean: float
    bounds: tuple[float, ...]
    below: tuple[float, ...]

    def quantile(self, share: float) -> float | None:
        """Return the quantile, linear inside a bucket as Prometheus has it; None beyond the last finite bound."""
        if not self.count or not self.below:
            return None
        rank, before, lower = share * self.below[-1], 0.0, 0.0
        for bound, count in zip(self.bounds, self.below, strict=True):
            if count >= rank:
                if math.isinf(bound):
                    return None
                inside = count - before
                return lower + (bound - lower) * ((rank - before) / inside if inside else 1.0)
            before, lower = count, bound
        return None

    def share_below(self, limit: float) -> float | None:
        """Return the share of values below `limit`, linear inside a bucket; None where there are no buckets."""
        if not self.count or not self.below:
            return None
        before, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.below, strict=True):
            if limit <= bound:
                inside = 0.0 if math.isinf(bound) or bound <= lower else (limit - lower) / (bound - lower)
                return (before + (count - before) * inside) / self.below[-1] if self.below[-1] else None
            before, lower = count, bound
        return 1.0

    @property
    def widest(self) -> float | None:
        """The standard deviation as the buckets tell it, None where all lie in one of them."""
        parts, before, lower = [], 0.0, 0.0
        for bound, count in zip(self.bounds, self.below, strict=True):
            if count > before and not math.isinf(bound):
                parts.append((0.5 * (lower + bound), count - before))
            before, lower = max(before, count), bound
        if len(parts) < 2:
            return None
        total = sum(weight for _, weight in parts)
        middle = sum(value * weight for value, weight in parts) / total
        return math.sqrt(sum(weight * (value - middle) ** 2 for value, weight in parts) / total)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeWindow:
    """Two scrapes of one server, or one and nothing before it (`before` None: since the server started).

    `between` are further scrapes, for levels.
    """

    after: Samples
    before: Samples | None = None
    between: tuple[Samples, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long the window is; None without a first scrape."""
        return None if self.before is None else max(1e-9, self.after.time_s - self.before.time_s)

    def steps(self) -> list[ScrapeWindow]:
        """Return the windows between neighbouring scrapes; none without a first one."""
        return [ScrapeWindow(after=new, before=old) for old, new in self._steps() if old is not None]

    def since_start(self) -> ScrapeWindow:
        """Return everything the counters hold."""
        return ScrapeWindow(after=self.after)

    def increase(self, name: str, **match: str) -> float | None:
        """Return by how much a counter grew over all its series; a counter that fell began anew."""
        if name not in self.after.series:
            return None
        return sum(
            value
            for grown in (_growth(old, new, name) for old, new in self._steps())
            for labels, value in grown.items()
            if matches(labels, match)
        )

    def increase_by_rank(self, name: str) -> dict[int, float]:
        """Return by how much a counter grew on every attention-DP rank."""
        ranks: dict[int, float] = {}
        for old, new in self._steps():
            grown = Samples(time_s=0.0, series={name: _growth(old, new, name)})
            for rank, value in grown.by_rank(name).items():
                ranks[rank] = ranks.get(rank, 0.0) + value
        return ranks

    def spread(self, name: str) -> Buckets | None:
        """Return a histogram's (or summary's) window; None where nothing was observed in it."""
        count, total = self.increase(f"{name}_count"), self.increase(f"{name}_sum")
        if not count or total is None:
            return None
        below = self._buckets(f"{name}_bucket")
        bounds = tuple(sorted(below))
        return Buckets(
            count=count, mean=max(0.0, total / count), bounds=bounds, below=tuple(below[bound] for bound in bounds)
        )

    def _buckets(self, name: str) -> dict[float, float]:
        below: dict[float, float] = {}
        for old, new in self._steps():
            for labels, value in _growth(old, new, name).items():
                try:
                    bound = float(dict(labels).get("le", "nan"))
                except ValueError:
                    continue
                if not math.isnan(bound):
                    below[bound] = below.get(bound, 0.0) + value
        return below

    def level(self, name: str) -> float | None:
        """Return a gauge summed over its series: the mean of the scrapes."""
        levels = [total for samples in self._all() if (total := samples.total(name)) is not None]
        return sum(levels) / len(levels) if levels else None

    def fullest(self, name: str) -> float | None:
        """Return a gauge's largest series: the mean of the scrapes."""
        levels = [value for samples in self._all() if (value := samples.largest(name)) is not None]
        return sum(levels) / len(levels) if levels else None

    def _steps(self) -> list[tuple[Samples | None, Samples]]:
        """Return neighbouring scrapes: a server that began anew in between loses what it had not shown."""
        if self.before is None:
            return [(None, self.after)]
        chain = self._all()
        return list(pairwise(chain))

    def _all(self) -> list[Samples]:
        return [*([self.before] if self.before is not None else []), *self.between, self.after]


def _growth(old: Samples | None, new: Samples, name: str) -> dict[Labels, float]:
    """Return by how much each series of a counter grew from one scrape to the next."""
    was = old.series.get(name, {}) if old is not None else {}
    grown = {}
    for labels, value in new.series.get(name, {}).items():
        before = was.get(labels, 0.0)
        grown[labels] = value - before if value >= before else value
    return grown
