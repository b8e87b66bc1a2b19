"""Records in the making: of a new proposal, of a predicted one, of a measured one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.config import ServerConfig
from models.serving.estimate import Context, Prediction
from models.workload import Slo, Workload, missed
from planner.traffic_plans.traced import TracedPrediction, predict_load
from tuner.choices import Objective
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.run.load_ladder import decision_of
from tuner.seam import Measurement, Verdict
from tuner.search.closed_form import of_goal
from tuner.search.configurations import PHYSICS, rows_of
from tuner.search.objective import Goal
from tuner.search.space import TuningSpace


@dataclass(frozen=True, slots=True)
class TrialBuilder:
    """Makes the records of one task; `simulated` ones describe a world, not a machine."""

    goal: Goal
    context: Context
    workload: Workload
    space: TuningSpace
    simulated: bool = False

    def blank(
        self, source: str, params: dict[str, Any], config: ServerConfig, records: Sequence[TrialRecord]
    ) -> TrialRecord:
        """A record of a new configuration: as bad as the worst seen, memory violated."""
        worst = min((record.objective for record in records), default=0.0)
        return TrialRecord(
            number=len(records),
            source=source,
            params=params,
            config=config,
            outcome=TrialOutcome.RULED_OUT,
            predicted={},
            objective=worst,
            constraints={"memory": 1.0, **{key_of(slo): 0.0 for slo in self.goal.constraining}},
            simulated=self.simulated,
        )

    def predict(self, draft: TrialRecord) -> tuple[TrialRecord, Prediction]:
        """Complete a record with what the model says: what samplers learn of a trial that was not measured.

        What closed forms say of users and goodput stands beside the replay of the load that is expected to decide; of
        a trace the replay says it.
        """
        workload, value = self.workload, None
        if self.goal.objective in (Objective.USERS, Objective.GOODPUT):
            rows = rows_of(self.space, [(draft.params, draft.config)])
            value = math.exp(float(of_goal(self.goal)(rows, np.zeros(len(PHYSICS)))[0]))
        if self.goal.objective is Objective.USERS:
            workload = replace(workload, concurrency=max(1, round(value or 1.0)))
        predicted = predict_load(self.context, draft.config, workload, self.goal.slos)
        if isinstance(predicted, TracedPrediction):
            of_goodput = self.goal.objective is Objective.GOODPUT
            value = self.goal.goodput(predicted.goodput_rps) if of_goodput else None
        figures = {
            "output_tok_s": predicted.output_tok_s,
            "tpot_mean_ms": predicted.tpot_ms["mean"],
            "ttft_mean_ms": predicted.ttft_ms["mean"],
            "output_tok_s_low": predicted.band["output_tok_s"][0],
            "output_tok_s_high": predicted.band["output_tok_s"][1],
        }
        if value is not None:
            figures[str(self.goal.objective)] = value
        else:
            value = self.goal.rated(draft.config, predicted.output_tok_s, predicted.tpot_ms["mean"])
        misses = {key_of(slo): slo.excess(predicted) for slo in self.goal.constraining}
        if self.goal.objective is Objective.USERS and value >= 1.0:
            misses = dict.fromkeys(misses, 0.0)
        record = replace(
            draft, predicted=figures, objective=self.goal.score(value), constraints={"memory": -1.0, **misses}
        )
        return record, predicted

    def measured(self, draft: TrialRecord, points: Sequence[Measurement], boot_s: float, stopped: str) -> TrialRecord:
        """Complete a record with what came back; `stopped` says why not every load was measured."""
        ordered = tuple(sorted(points, key=lambda point: point.load))
        target = decision_of(self.goal, ordered)
        spent_s = boot_s + sum(point.duration_s for point in points)
        record = replace(draft, points=ordered, boot_s=boot_s, spent_s=spent_s, decided_at=target.load)
        if target.verdict is not Verdict.OK:
            where = f"the point at {target.load:g} {'clients' if target.request_rate is None else 'requests/s'}"
            return replace(record, outcome=TrialOutcome.FAILED, reason=f"{where} is {target.verdict}: {target.why}")
        value = self.goal.value(draft.config, ordered, target)
        violated = {key_of(slo): slo.excess(target) for slo in self.goal.constraining}
        misses = missed(self.goal.constraining, target)
        if self.goal.objective is Objective.USERS and stopped:
            violated, misses = dict.fromkeys(violated, 0.0), ()  # fewer users would have been carried
        return replace(
            record,
            outcome=TrialOutcome.MEASURED,
            reason=stopped,
            objective=self.goal.score(value),
            value=value,
            constraints={"memory": -1.0, **violated},
            misses=misses,
        )


def key_of(slo: Slo) -> str:
    """Return the name of the constraint of a limit."""
    return f"slo {slo}"
