"""Predictions and ledgers as JSON-ready values: what documents of plans and of checks have in common."""

from __future__ import annotations

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
    document = {name: getattr(prediction, name) for name in names}
    document["band"] = {name: list(interval) for name, interval in prediction.band.items()}
    document["warnings"] = list(prediction.warnings)
    return document


def ledger_document(ledger: MemoryLedger) -> dict[str, Any]:
    """Return a ledger as JSON-ready values."""
    return {
        "per_gpu_gib": ledger.per_gpu_gib,
        "card_gib": ledger.card_gib,
        "headroom_gib": ledger.headroom_gib,
        "kv_tokens_per_rank": ledger.kv_tokens_per_rank,
        "free_gib": ledger.free_gib,
    }
