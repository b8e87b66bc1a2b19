"""SGLang's Prometheus metrics as its releases have them: names, types, labels, buckets. Knows nothing of a driver.

`metrics.json` is read from SGLang's wheels by `tools/read_metrics.py`; a release between two that were read is served
as the older of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

from packaging.version import Version
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)

PREFIX = "sglang:"
# The first release read that has each label of its process's metrics.
SCHEDULER_LABELS = {"engine_type": "0.4.7", "tp_rank": "0.4.9.post6", "pp_rank": "0.5.3", "moe_ep_rank": "0.5.9"}
FRONT_END_LABELS = {"engine_type": "0.5.12"}
Labels = Mapping[str, int | str]
NO_LABELS: Labels = {}
KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRecord:
    """One metric of a release; `labels` are those it adds to its process's own."""

    name: str
    type: str
    process: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] | None
    by_pid: bool


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files("tuner.emulator").joinpath("metrics.json").read_bytes())
    return table


def release_read(version: Version) -> Version:
    """Return the newest release read that is not newer than `version`, the oldest where there is none."""
    releases = [Version(text) for text in _table()["releases"]]
    return max((release for release in releases if release <= version), default=releases[0])


def metrics_of(version: Version) -> dict[str, MetricRecord]:
    """Return the metrics of a release by name, without SGLang's prefix."""
    release = release_read(version)
    return {
        record["name"]: MetricRecord(
            name=record["name"],
            type=record["type"],
            process=record["process"],
            labels=tuple(record["labels"]),
            buckets=tuple(record["buckets"]) if record["buckets"] else None,
            by_pid=record["by_pid"],
        )
        for record in _table()["metrics"]
        if Version(record["since"]) <= release <= Version(record["until"])
    }


class Exposition:
    """What a server of a release exposes. A metric the release does not have takes no value and does not show."""

    def __init__(self, version: Version, *, model_name: str, pid: int, engine_type: str = "unified") -> None:
        cast("Callable[[], None]", disable_created_metrics)()  # SGLang's collector of many processes shows none
        self._registry = CollectorRegistry()
        self._release = release_read(version)
        self._records = metrics_of(version)
        self._model_name, self._pid, self._engine_type = model_name, str(pid), engine_type
        self._metrics: dict[str, Any] = {}
        self._children: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}

    def has(self, name: str) -> bool:
        """Whether the release has this metric."""
        return name in self._records

    def text(self) -> bytes:
        """Return the exposition in Prometheus's text format."""
        return generate_latest(self._registry)

    def set(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Set a gauge. Of `labels` those count that the metric has: ranks for a scheduler's, and its own."""
        if child := self._child(name, labels):
            child.set(value)

    def add(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Add to a counter."""
        if child := self._child(name, labels):
            child.inc(value)

    def note(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Observe a value of a histogram, or set what is a gauge in this release."""
        record = self._records.get(name)
        (self.set if record is not None and record.type == "gauge" else self.observe)(name, value, labels)

    def observe(self, name: str, value: float, labels: Labels = NO_LABELS) -> None:
        """Observe a value of a histogram or summary."""
        if child := self._child(name, labels):
            child.observe(value)

    def _child(self, name: str, labels: Labels) -> Any:
        record = self._records.get(name)
        if record is None:
            return None
        own = {label: str(labels.get(label, "")) for label in record.labels}
        values = {**self._process_labels(record.process, labels), **own}
        if record.by_pid:
            values["pid"] = self._pid
        key = (name, tuple(values.items()))
        if key not in self._children:
            self._children[key] = self._metric(record, tuple(values)).labels(**values)
        return self._children[key]

    def _process_labels(self, process: str, labels: Labels) -> dict[str, str]:
        values = {"model_name": self._model_name}
        since = SCHEDULER_LABELS if process == "scheduler" else FRONT_END_LABELS
        for name, release in since.items():
            if self._release >= Version(release):
                values[name] = self._engine_type if name == "engine_type" else str(labels.get(name, 0))
        if process == "scheduler" and "dp_rank" in labels and "tp_rank" in values:
            values["dp_rank"] = str(labels["dp_rank"])
        return values

    def _metric(self, record: MetricRecord, labels: tuple[str, ...]) -> Any:
        if record.name not in self._metrics:
            extra = {"buckets": record.buckets} if record.buckets else {}
            words = record.name.removesuffix("_total").replace("_", " ")
            self._metrics[record.name] = KINDS[record.type](
                PREFIX + record.name, f"Emulated: {words}.", labels, registry=self._registry, **extra
            )
        return self._metrics[record.name]
