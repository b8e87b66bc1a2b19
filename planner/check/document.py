"""The JSON document of `sgtune check --json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from planner.assumption import Assumption, UnknownValue
from planner.check.answer import CheckAnswer
from planner.plans.document import ledger_document, prediction_document


def check_document(answer: CheckAnswer) -> dict[str, Any]:
    """Return the answer as JSON-ready values; field names are a contract."""
    checked, weighed = answer.checked, answer.weighed
    ledger = ledger_document(weighed.ledger) if weighed else None
    if ledger is not None and weighed is not None:
        ledger["per_node_gib"] = weighed.ledger.per_node_gib()
        ledger["shortage_gib"] = max(0.0, weighed.shortage_gib)
    return {
        "accepted": answer.accepted,
        "verdict": answer.verdict,
        "fits": weighed.fits and weighed.shortage_gib <= 0 if weighed else None,
        "question": answer.question,
        "violations": [
            {
                "rule": violation.rule,
                "severity": str(violation.severity),
                "refused": violation.refused,
                "message": violation.message,
                "fix": violation.fix,
            }
            for violation in answer.violations
        ],
        "typed": checked.typed.as_dict(),
        "resolved": checked.resolved.fields,
        "reasons": checked.resolved.reasons,
        "ledger": ledger,
        "kv_tokens_per_rank": weighed.ledger.kv_tokens_per_rank if weighed else None,
        "kv_tokens": weighed.ledger.kv_tokens if weighed else None,
        "requests": weighed.most_requests if weighed else None,
        "prediction": prediction_document(answer.prediction) if answer.prediction else None,
        "unpredicted": answer.unpredicted,
        "misses": list(answer.misses),
        "model": {"name": answer.served.arch.name, "weights": answer.served.arch.weights, "basis": answer.served.basis},
        "assumed": assumed_document(answer.assumed),
        "unknown": [],
        "advice": [
            {
                "flags": a.flags,
                "text": a.text,
                "kv_tokens_per_rank": a.kv_after,
                "makes_it_fit": a.makes_it_fit,
                "output_tok_s": a.output_tok_s,
                "gain_percent": a.gain_percent,
                "misses": list(a.misses),
            }
            for a in answer.advice
        ],
        "unpriced": [flag.as_dict() for flag in answer.unpriced],
        "hangs_on": [flag.flag for flag in answer.hangs_on],
        "warnings": list(answer.notes),
    }


def assumed_document(assumed: Iterable[Assumption]) -> list[dict[str, str]]:
    """Return assumptions as JSON-ready values."""
    return [{"name": assumption.name, "value": assumption.value, "why": assumption.why} for assumption in assumed]


def unknown_document(unknown: Iterable[UnknownValue]) -> list[dict[str, str]]:
    """Return the values asked for as JSON-ready values."""
    return [{"flag": value.flag, "text": value.text} for value in unknown]
