"""A trace's summary as the JSON document of `sgtune traffic`, and as a page of HTML."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from typing import Any

import jinja2

from models.traffic.summary import Distribution, TrafficSummary

WIDTH, HEIGHT = 720, 160


def traffic_document(summary: TrafficSummary) -> dict[str, Any]:
    """Return the document; tokens, seconds, shares from 0 to 1."""
    curve, arrivals = summary.curve, summary.arrivals
    return {
        "form": summary.form,
        "requests": summary.requests,
        "duration_s": summary.duration_s,
        "sessions": summary.sessions,
        "turns": _spread(summary.turns),
        "think_s": _spread(summary.think_s),
        "input_tokens": _spread(summary.input_tokens),
        "output_tokens": _spread(summary.output_tokens),
        "arrivals": {name: value for name, value in asdict(arrivals).items() if name != "bins"}
        | {"bins": list(arrivals.bins)},
        "prefix_hit_rate": curve.unbounded,
        "shared_tokens": _spread(summary.shared_tokens),
        "requests_that_share": summary.requests_that_share,
        "hit_curve": [
            {"cache_tokens": size, "hit_rate": rate}
            for size, rate in zip(curve.cache_tokens, curve.hit_rate, strict=True)
        ],
        "notes": list(summary.notes),
    }


def _spread(spread: Distribution) -> dict[str, float]:
    return {"mean": spread.mean, "p50": spread.p50, "p90": spread.p90, "p99": spread.p99, "max": spread.most}


def traffic_page(summary: TrafficSummary, name: str) -> str:
    """Return the page: one file, no script, no network."""
    template = files("tuner").joinpath("trace_files/page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    most = max(summary.arrivals.bins)
    wide = WIDTH / len(summary.arrivals.bins)
    bars = [
        {"x": number * wide, "y": HEIGHT * (1 - count / most), "height": HEIGHT * count / most, "count": count}
        for number, count in enumerate(summary.arrivals.bins)
    ]
    curve = summary.curve
    steps = max(1, len(curve.cache_tokens) - 1)
    points = [
        {"x": WIDTH * number / steps, "y": HEIGHT * (1 - rate), "size": size, "rate": rate}
        for number, (size, rate) in enumerate(zip(curve.cache_tokens, curve.hit_rate, strict=True))
    ]
    return environment.from_string(template).render(
        name=name, found=summary, bars=bars, wide=wide, points=points, width=WIDTH, height=HEIGHT
    )
