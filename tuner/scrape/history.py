"""History: the scrapes a Prometheus server holds, as if they had been made here."""

from __future__ import annotations

import http.client
import math
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from hwprobe.errors import InputError
from hwprobe.plain_text import one_line
from tuner.bench.server_side import Address
from tuner.scrape.samples import OTHER_ENGINES, PREFIX, Labels, Samples
from tuner.server.ask import NO_ANSWER, HttpRequest, ask, items, json_answer, mapping

QUERY_S = 30.0
MOST_ANSWER_BYTES = 128 << 20
# Points of a window: enough to see restarts and quiet hours, few enough for one answer.
STEPS = 24
SHORTEST_STEP_S = 5.0
# What Prometheus adds to a target's own labels.
TARGET_LABELS = frozenset({"instance", "job"})


@dataclass(slots=True)
class Prometheus:
    """A Prometheus server; `path` is what its API lies below."""

    address: Address
    path: str = ""
    key: str | None = field(default=None, repr=False)

    def history(self, window_s: float, now_s: float) -> dict[str, list[Samples]]:
        """Return each target's scrapes over the last `window_s`, oldest first. Raises InputError when there are none.

        `now_s` is the time of day. A target is named by its `instance`.
        """
        step_s = max(SHORTEST_STEP_S, window_s / STEPS)
        count = max(1, math.floor(window_s / step_s))
        result = self._range(now_s - count * step_s, now_s, step_s)
        targets: dict[str, dict[float, dict[str, dict[Labels, float]]]] = {}
        for series in result:
            labels = {str(name): str(value) for name, value in mapping(series.get("metric")).items()}
            name = labels.pop("__name__", "")
            instance = labels.get("instance", "")
            own_labels = tuple(sorted((key, value) for key, value in labels.items() if key not in TARGET_LABELS))
            for at, value in _points(series.get("values")):
                metrics = targets.setdefault(instance, {}).setdefault(at, {})
                metrics.setdefault(name.removeprefix(PREFIX), {})[own_labels] = value
        if not targets:
            raise InputError(self._nothing(window_s))
        return {
            instance: [Samples(time_s=at, series=by_time[at]) for at in sorted(by_time)]
            for instance, by_time in sorted(targets.items())
        }

    def _range(self, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        query = {"query": '{__name__=~"sglang:.+"}', "start": f"{start_s:.3f}", "end": f"{end_s:.3f}",
                 "step": f"{step_s:g}"}  # fmt: skip
        document = self._get("/api/v1/query_range", query)
        return items(mapping(document.get("data")).get("result"))

    def _nothing(self, window_s: float) -> str:
        names = self._get("/api/v1/label/__name__/values", {}).get("data")
        metric_names = [str(name) for name in names] if isinstance(names, list) else []
        others = {
            engine for prefix, engine in OTHER_ENGINES.items() if any(name.startswith(prefix) for name in metric_names)
        }
        what = f"; it holds metrics of {', '.join(sorted(others))}" if others else ""
        return (
            f"--prometheus: no metric of SGLang in the last {window_s:g} s{what}; start SGLang with --enable-metrics, "
            "let Prometheus scrape it, or give a longer --query-window"
        )

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        """Return the API's answer. Raises InputError where there is none."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = HttpRequest(
            host=self.address.host, port=self.address.port, secure=self.address.secure, method="GET",
            path=f"{self.path}{path}?{urlencode(query, quote_via=quote)}", headers=headers,
        )  # fmt: skip
        where = f"--prometheus {self.address.host}:{self.address.port}"
        try:
            status, text = ask(request, QUERY_S, most_bytes=MOST_ANSWER_BYTES)
            document = mapping(json_answer(text))
        except NO_ANSWER as error:
            raise InputError(f"{where} does not answer as Prometheus does ({one_line(str(error))})") from error
        if status != http.client.OK or document.get("status") != "success":
            raise InputError(f"{where} refused the query: {one_line(str(document.get('error', f'HTTP {status}')))}")
        return document


def _points(values: Any) -> list[tuple[float, float]]:
    points = []
    for pair in values if isinstance(values, list) else []:
        try:
            at, value = float(pair[0]), float(pair[1])
        except (TypeError, ValueError, IndexError, KeyError):
            continue
        if math.isfinite(at) and math.isfinite(value):
            points.append((at, value))
    return points
