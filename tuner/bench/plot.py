"""A throughput-latency plot as one HTML file: inline SVG, no script, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from tuner.bench.point import MeasuredPoint
from tuner.seam import Verdict

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 720.0, 380.0, 80.0, 60.0, 24.0
TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear axis from 0: its length in pixels, where its ticks are, and how a value becomes a pixel."""

    most: float
    start: float
    length: float

    @property
    def ticks(self) -> list[float]:
        step = 10 ** math.floor(math.log10(self.most / TICKS))
        for factor in (1, 2, 5, 10):
            if self.most / (step * factor) <= TICKS:
                step *= factor
                break
        return [step * number for number in range(int(self.most / step) + 1)]

    def pixel(self, value: float) -> float:
        return self.start + self.length * value / self.most


def plot_html(points: Sequence[MeasuredPoint], title: str, command: str) -> str:
    """Return the page: output tok/s against what a user sees, each point labelled with its clients and verdict."""
    ordered = sorted(points, key=lambda point: point.workload.concurrency)
    speeds = [point.measurement().user_tok_s for point in ordered]
    x = Axis(most=1.1 * max(speeds), start=LEFT, length=WIDTH - LEFT - MARGIN)
    y = Axis(
        most=1.1 * max(point.window.output_tok_s_interval[1] for point in ordered),
        start=HEIGHT - BOTTOM,
        length=-(HEIGHT - BOTTOM - MARGIN),
    )
    marks = [
        {
            "x": x.pixel(speed),
            "y": y.pixel(point.window.output_tok_s),
            "low": y.pixel(point.window.output_tok_s_interval[0]),
            "high": y.pixel(point.window.output_tok_s_interval[1]),
            "label": _label(point),
            "ok": point.verdict is Verdict.OK,
            "point": point,
            "speed": speed,
        }
        for point, speed in zip(ordered, speeds, strict=True)
    ]
    template = files("tuner").joinpath("bench/plot.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title, command=command, marks=marks, x=x, y=y, width=WIDTH, height=HEIGHT, left=LEFT, margin=MARGIN
    )


def _label(point: MeasuredPoint) -> str:
    if point.settings.request_rate:
        return f"{point.settings.request_rate:g}/s"
    return str(point.workload.concurrency)
