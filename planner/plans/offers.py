"""Offers: other exports of a model for a machine whose GPUs cannot run the one asked for.

What an export costs in accuracy is not judged here: it is measured on the reader's own task, or read from its card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.serving.estimate import Context
from models.workload import Workload
from planner.plans.candidates import Candidate, Found
from planner.plans.search import Effort, search
from planner.plans.space import default_space
from planner.rules import CHECKPOINT_RULES

# Exports that somebody publishes for R1 and its like, and what they are called here; the smallest first.
EXPORTS = (
    ("gptq", "4-bit GPTQ"), ("awq", "4-bit AWQ"), ("w4afp8", "W4AFP8"), ("modelopt_fp4", "NVFP4"), ("quark", "MXFP4"),
    ("w8a8_int8", "INT8 per channel"), ("blockwise_int8", "INT8 per block"), (None, "BF16"),
)  # fmt: skip
NODE_STEPS = (1, 2, 4)
ACCURACY = "what an export costs in accuracy is not judged: measure it on your own task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One export that runs here: on how many nodes, and its best configuration there."""

    label: str
    method: str | None
    nodes: int
    best: Candidate

    @property
    def weights_gib(self) -> float:
        return self.best.ledger.weights_gib

    def as_dict(self) -> dict[str, Any]:
        """Return the offer as JSON-ready values."""
        prediction = self.best.prediction
        return {
            "weights": self.label,
            "quant_method": self.method,
            "nodes": self.nodes,
            "configuration": self.best.config.label,
            "weights_gib_per_gpu": self.weights_gib,
            "kv_tokens": self.best.ledger.kv_tokens,
            "output_tok_s": prediction.output_tok_s,
            "band": list(prediction.band["output_tok_s"]),
            "accuracy": ACCURACY,
        }

    @property
    def sentence(self) -> str:
        low, high = self.best.prediction.band["output_tok_s"]
        plural = "s" if self.nodes > 1 else ""
        return (
            f"{self.label} on {self.nodes} node{plural}: {self.weights_gib:.0f} GiB a GPU, {self.best.config.label}, "
            f"{self.best.prediction.output_tok_s:,.0f} tok/s (90 % band {low:,.0f} to {high:,.0f}), "
            f"{self.best.ledger.kv_tokens:,} KV tokens"
        )


def unreadable(result: Found) -> bool:
    """Say whether nothing was found because this hardware or release cannot run the checkpoint's weights at all."""
    return result.evaluated == 0 and any(item.kind in CHECKPOINT_RULES for item in result.rejected)


def offers(context: Context, workload: Workload, result: Found) -> tuple[Offer, ...]:
    """Return the exports that run on this machine, or on up to four of its kind, where the one asked for cannot."""
    if not unreadable(result):
        return ()
    own = context.arch.weight_formats.method
    tried = (_offer(context, workload, method, label) for method, label in EXPORTS if method != own)
    return tuple(offer for offer in tried if offer is not None)


def _offer(context: Context, workload: Workload, method: str | None, label: str) -> Offer | None:
    """Return the export on the fewest nodes that hold it, or None."""
    arch = context.arch.quantised(method)
    for factor in NODE_STEPS:
        nodes = context.machine.nodes * factor
        wider = replace(context, arch=arch, machine=context.machine.with_nodes(nodes))
        space = default_space(wider.machine, context.version, arch=arch, mtp=False)
        answer = search(wider, space, workload, effort=Effort(replayed=1))
        if answer.candidates:
            return Offer(label=label, method=method, nodes=nodes, best=answer.candidates[0])
        if unreadable(answer):
            return None
    return None
