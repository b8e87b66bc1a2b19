"""Predictions and ledgers as JSON-ready values: what documents of plans and of checks have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.costs.memory import MemoryLedger
    from models.serving.estimate import Prediction


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON-ready values."""
    names = (
        "output_tok_s", "total_tok_s", "user_tok_s", "user_tok_s_with_wait", "request_rate", "running_requests",
        "ttft_ms", "tpot_ms", "e2e_ms", "step_ms", "accepted_tokens", "stall_ms", "breakdown_ms", "limiting",
        "retractions",
    )  # fmt: skip
    document = {name: finite(getattr(prediction, name)) for name in names}
    document["band"] = {name: finite(list(interval)) for name, interval in prediction.band.items()}
    document["queue_grows"] = prediction.queue_grows
    document["warnings"] = list(prediction.warnings)
    return document


def finite(value: Any) -> Any:
    """Return the value with null for what grows without end, in lists and mappings too."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def latency_text(ms: float) -> str:
    """Return a latency in whole ms, or that it grows: that of a queue without end."""
    return f"{ms:,.0f}" if math.isfinite(ms) else "grows"


def latency_words(ms: float) -> str:
    """Return a latency with its unit, as a sentence has it."""
    return f"{ms:,.0f} ms" if math.isfinite(ms) else "without end"


def ledger_document(ledger: MemoryLedger) -> dict[str, Any]:
    """Return a ledger as JSON-ready values."""
    return {
        "per_gpu_gib": ledger.per_gpu_gib,
        "card_gib": ledger.card_gib,
        "headroom_gib": ledger.headroom_gib,
        "kv_tokens_per_rank": ledger.kv_tokens_per_rank,
        "free_gib": ledger.free_gib,
    }
