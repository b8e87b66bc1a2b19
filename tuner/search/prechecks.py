"""Reasons not to launch a proposal: rules, the ledger, and the optimistic end of its prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context, Prediction
from models.workload import Workload
from planner.plans.alternatives import DEFAULT, UNMODELLED
from planner.plans.search import SAFE_FREE_GIB
from planner.rules import Question, first_error
from planner.traffic_plans.traced import TracedPrediction
from tuner.choices import Objective
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.seam import FailureKind
from tuner.search.memory_belief import evidence, known_missing_gib
from tuner.search.objective import Goal

# Two configurations of one family predicted closer than this differ by less than measurements do.
INDISTINCT = 0.01


def cannot_run(
    config: ServerConfig, context: Context, workload: Workload, records: Sequence[TrialRecord]
) -> str | None:
    """Say which rule or number forbids the launch, or None."""
    question = Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
    error = first_error(question)
    if error is not None:
        return f"{error.rule}: {error.message}"
    filled = context.memory(table_of([config]))
    if float(filled.kv_tokens_per_rank[0]) < workload.longest_request:
        return f"memory: {int(filled.kv_tokens_per_rank[0]):,} KV tokens cannot hold one request"
    if float(filled.free[0]) < SAFE_FREE_GIB:
        return f"memory: {float(filled.free[0]):.1f} GiB would be left free per GPU, {SAFE_FREE_GIB} are needed"
    missing = known_missing_gib(evidence(records, context))
    if float(filled.free[0]) <= missing:
        return f"memory: {float(filled.free[0]):.1f} GiB left free per GPU; a launch with {missing:.1f} ran out"
    return None


def quarantined(config: ServerConfig, records: Sequence[TrialRecord]) -> str | None:
    """Say that a configuration failed before, each time by the machine's fault, or None."""
    for record in records:
        lost = record.failure is FailureKind.NODE_LOST  # says nothing of the configuration
        if record.outcome is TrialOutcome.FAILED and record.config == config and not lost:
            return f"quarantined: trial {record.number} failed twice ({record.failure or 'no usable measurement'})"
    return None


def cannot_win(
    goal: Goal, config: ServerConfig, params: dict[str, Any], predicted: Prediction, records: Sequence[TrialRecord]
) -> str | None:
    """Say that the optimistic end of the prediction loses, or that a launch would not differ from a measured one."""
    twin = _twin(config, params, predicted, records)
    if twin is not None:
        return f"nothing new: predicted within {100 * INDISTINCT:.0f} % of trial {twin.number}, same family"
    best = best_of(records)
    if best is None or best.target is None or goal.objective in (Objective.USERS, Objective.GOODPUT):
        return None
    value = goal.rated(config, predicted.band["output_tok_s"][1], predicted.band["tpot_mean_ms"][0])
    optimistic = goal.score(value)
    if optimistic >= best.objective:
        return None
    return f"bound: at best {100 * math.expm1(optimistic - best.objective):+.0f} % of the best measured"


def _twin(
    config: ServerConfig, params: dict[str, Any], predicted: Prediction, records: Sequence[TrialRecord]
) -> TrialRecord | None:
    """Return a measured trial of the same family with an indistinguishable prediction, or None."""
    rate, own = predicted.output_tok_s, _unpriced(params)
    for record in records:
        same = (
            record.outcome is TrialOutcome.MEASURED and record.label == config.label and _unpriced(record.params) == own
        )
        if same and abs(record.predicted["output_tok_s"] / rate - 1.0) < INDISTINCT and _alike(record, predicted):
            return record
    return None


def _alike(record: TrialRecord, predicted: Prediction) -> bool:
    """Say whether latencies are alike too: under a trace every rate that holds is the trace's own."""
    if not isinstance(predicted, TracedPrediction):
        return True
    pairs = ((record.predicted["tpot_mean_ms"], predicted.tpot_ms["mean"]),
             (record.predicted["ttft_mean_ms"], predicted.ttft_ms["mean"]))  # fmt: skip
    return all(abs(before / max(now, 1e-9) - 1.0) < INDISTINCT for before, now in pairs)


def _unpriced(params: dict[str, Any]) -> list[Any]:
    return [params.get(name, DEFAULT) for name in UNMODELLED]
