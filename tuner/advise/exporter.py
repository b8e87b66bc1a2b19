"""Exporter: the last answer as Prometheus metrics, for dashboards and alerts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hwprobe.errors import InputError
from tuner.advise.expected import ratios
from tuner.advise.look import AdviseAnswer, ServerAnswer

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "sgtune_advise_"


class Exporter:
    """A Prometheus collector over the last answer; `answer` is replaced as a whole."""

    def __init__(self) -> None:
        self.answer: AdviseAnswer | None = None
        self.asked = 0
        self.failed = 0

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last answer."""
        from prometheus_client.core import CounterMetricFamily

        yield CounterMetricFamily(f"{PREFIX}rounds", "Times the servers were asked.", value=self.asked)
        yield CounterMetricFamily(f"{PREFIX}failed_rounds", "Times none of them answered.", value=self.failed)
        if self.answer is not None:
            yield from _families(self.answer)


@contextmanager
def exported(exporter: Exporter, host: str, port: int) -> Iterator[None]:
    """Serve an exporter for as long as the context lasts. Raises InputError where the address is taken."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(exporter)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InputError(f"--serve {host}:{port}: {error.strerror or error}; name another port") from error
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


# name: what it is, its labels
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "server_understood": ("1 where the model has an expectation of the server.", ("server", "engine")),
    "finding": ("1 while a finding stands.", ("server", "kind", "severity")),
    "finding_gain_percent": ("Predicted gain of a finding's change.", ("server", "kind", "severity")),
    "measured_over_predicted_ratio": ("Measured over predicted.", ("server", "metric")),
    "capacity_requests_per_second": ("Requests a second it answers at most.", ("server",)),
    "requests_per_second": ("Requests a second it answered in the window.", ("server",)),
    "slo_kept": ("1 where a limit was kept in the window, 0 where not.", ("server", "slo")),
}


def _families(answer: AdviseAnswer) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    values: dict[str, list[tuple[list[str], float]]] = {name: [] for name in GAUGES}
    for server in answer.servers:
        for name, labels, value in _of_server(server):
            values[name].append(([server.facts.name, *labels], value))
    for finding in answer.findings:
        labels = [finding.server, str(finding.kind), str(finding.severity)]
        values["finding"].append((labels, 1.0))
        values["finding_gain_percent"].append((labels, finding.gain_percent))
    for name, (text, labels_of) in GAUGES.items():
        family = GaugeMetricFamily(PREFIX + name, text, labels=labels_of)
        for labels, value in values[name]:
            family.add_metric(labels, value)
        yield family


def _of_server(server: ServerAnswer) -> Iterator[tuple[str, list[str], float]]:
    yield "server_understood", [server.facts.engine or "unknown"], float(server.model is not None)
    if server.model is not None and server.seen is not None:
        for metric, value in ratios(server.model, server.seen).items():
            yield "measured_over_predicted_ratio", [metric], value
    if server.capacity is not None:
        yield "capacity_requests_per_second", [], server.capacity.most_per_s
        if server.capacity.now_per_s is not None:
            yield "requests_per_second", [], server.capacity.now_per_s
    for each in server.slos:
        if each.kept is not None:
            yield "slo_kept", [str(each.slo)], float(each.kept)
