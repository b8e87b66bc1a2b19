"""The founding case: a published table, to be shown beside the prediction with its residual."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from models.config import ServerConfig
from models.serving.estimate import Context, predict
from models.workload import Workload
from planner.sglang.resolver import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A published figure, the prediction for it, and the residual in percent (published over predicted)."""

    quantity: str
    published: float
    predicted: float
    configuration: str
    source: str
    note: str

    @property
    def residual_percent(self) -> float:
        return 100.0 * (self.published / self.predicted - 1.0)


@cache
def _founding_case() -> dict[str, Any]:
    return tomllib.loads(files("models").joinpath("founding_case.toml").read_text(encoding="utf-8"))


def compare_with_published(context: Context, hardware: str, workload: Workload) -> Comparison | None:
    """Return the comparison if this very question has a published answer, else None.

    The published launch flags are unknown: the prediction is for TP over all GPUs with SGLang's defaults.
    """
    case = _founding_case()
    if hardware != case["hardware"] or str(context.version) != case["sglang_version"]:
        return None
    workload_key = (workload.isl.mean, workload.osl.mean, workload.concurrency)
    for point in case["points"]:
        if (point["isl"], point["osl"], point["concurrency"]) == workload_key:
            return _compare(context, workload, point, case["source"])
    return None


def _compare(context: Context, workload: Workload, point: dict[str, Any], source: str) -> Comparison:
    typed = ServerConfig(tp_size=context.machine.gpu_count, nnodes=context.machine.nodes)
    config = resolve(typed, context.arch, context.machine, context.version).config
    prediction = predict(context, config, workload)
    per_user = "user_tok_s" in point
    note = "launch flags unpublished: predicted for " + config.label + " with SGLang's defaults"
    if not per_user:
        note += "; the source does not say whether its total counts input tokens too"
    return Comparison(
        quantity="tok/s per user" if per_user else "output tok/s in total",
        published=point["user_tok_s"] if per_user else point["output_tok_s"],
        predicted=prediction.user_tok_s if per_user else prediction.output_tok_s,
        configuration=config.label,
        source=source,
        note=note,
    )
