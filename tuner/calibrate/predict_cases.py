"""Predictions of many cases: equal questions are answered once, and many of them on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence

from models.records.case import Case, CasePrediction, predict_case
from models.serving.uncertainty import Errors

Foreseen = tuple[CasePrediction, Errors]
# Fewer questions than this are answered before other processes would have started.
WORTH_PROCESSES = 48
MOST_PROCESSES = 8


def predict_cases(cases: Sequence[Case]) -> list[Foreseen]:
    """Return the prediction of every case and its errors, in order."""
    keys = [_question(case) for case in cases]
    different = dict(zip(keys, cases, strict=True))
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    if len(different) < WORTH_PROCESSES or processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        predictions = {key: predict_case(case) for key, case in different.items()}
    else:
        longest_first = sorted(different, key=lambda key: -different[key].run.requests)
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            answers = pool.map(predict_case, [different[key] for key in longest_first], chunksize=1)
        predictions = dict(zip(longest_first, answers, strict=True))
    return [predictions[key] for key in keys]


def _question(case: Case) -> tuple[object, ...]:
    """Return all that a prediction depends on: repeats of a sweep ask the same question again."""
    context = case.context
    return (
        context.arch, context.version, id(context.engine), context.machine, context.acceptance, context.independence,
        case.config, case.run, case.kv_tokens, case.kv_known, case.servers,
        case.prefill and (case.prefill.config, case.prefill.servers),
    )  # fmt: skip
