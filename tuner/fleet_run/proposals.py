"""Which deployment is launched next: the one expected to improve most on the best measured, or none.

Of every deployment the calibrated model says what it gives. What launches of the same kind (copies, or prefill and
decode apart) gave over their predictions corrects the others; what is left is taken as normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.workload import Workload
from planner.fleets.deployed import candidate_of, server_context
from planner.fleets.deployment import Deployment, Role
from planner.fleets.disaggregated import fleet_key
from planner.plans.candidates import Candidate
from planner.plans.make import PlanQuestion
from tuner.evidence.trial import TrialRecord
from tuner.search.expected_improvement import chance_below, expected_improvement

# Sources of launches.
COPIES, BEST_RATIO, BESIDE, MODEL = "copies", "best ratio", "ratio beside", "model"
# How far (log) a deployment's rate may lie from its prediction: before one of its kind was launched, after, and where
# one with the same layouts was.
UNTRIED, TRIED, ALIKE = 0.10, 0.05, 0.015
# A launch is worth it from this expected improvement on (log of the rate).
WORTH = 0.01
# A ratio beside the best one is launched where it may win by so many deviations of its prediction.
REACH = 2.0
# A limit is kept where it is predicted to be kept by so much (log), one standard deviation.
LIMIT_DOUBT = 0.10


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A deployment and what the calibrated model says of it."""

    deployment: Deployment
    candidate: Candidate
    excess: float

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are apart."""
        return self.candidate.prefill is not None

    @property
    def score(self) -> float:
        return math.log(max(self.candidate.output_tok_s, 1e-6))


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to launch, and why."""

    source: str
    foreseen: Foreseen


def foresee(deployments: Sequence[Deployment], question: PlanQuestion, workload: Workload) -> list[Foreseen]:
    """Return what the question's profile says of each deployment, best first."""
    foreseen = []
    for deployment in deployments:
        candidate = candidate_of(deployment, lambda config: server_context(question, config), workload, question.slos)
        foreseen.append(Foreseen(deployment, candidate, fleet_key(candidate, workload, question.slos)))
    return sorted(foreseen, key=lambda one: (one.excess, -one.score))


@dataclass(frozen=True, slots=True)
class Standpoint:
    """What is known when a launch is chosen: what was foreseen and what was launched."""

    foreseen: Sequence[Foreseen]
    records: Sequence[TrialRecord]

    def next(self) -> Proposal | None:
        """Return the next launch, None where none is worth it."""
        untried = [one for one in self.foreseen if not self._launched(one)]
        apart = [one for one in untried if one.apart]
        if apart and not any(_is_apart(record) for record in self.records):
            return self._worth(Proposal(BEST_RATIO, apart[0]))
        beside = self._beside(apart)
        if beside is not None:
            return beside
        best = max(untried, key=self.gain, default=None)
        return None if best is None else self._worth(Proposal(MODEL, best))

    def gain(self, one: Foreseen) -> float:
        """Return the expected improvement (log) of a launch over the best measured."""
        best = max((record.objective for record in self.records if record.feasible), default=None)
        keeps_limits = float(chance_below(np.array([-one.excess / LIMIT_DOUBT]))[0]) if one.excess > 0.0 else 1.0
        if best is None:
            return keeps_limits
        ahead = np.array([one.score + self._correction(one.apart) - best])
        return keeps_limits * float(expected_improvement(ahead, np.array([self._deviation(one)]))[0])

    def may_win(self, one: Foreseen) -> bool:
        """Say whether what a launch may improve is worth it."""
        return self.gain(one) >= WORTH

    def _worth(self, proposal: Proposal) -> Proposal | None:
        return proposal if self.may_win(proposal.foreseen) else None

    def _beside(self, apart: Sequence[Foreseen]) -> Proposal | None:
        """Return the best deployment of a ratio next to the first one launched that may still win."""
        first = next((record for record in self.records if record.source == BEST_RATIO), None)
        if first is None:
            return None
        ratio, tried = _ratio_of(first), {_ratio_of(record) for record in self.records if _is_apart(record)}
        best = max((record.objective for record in self.records if record.feasible), default=-math.inf)
        for one in apart:
            servers = one.deployment.pools[0].servers
            near = abs(servers - ratio[0]) == 1 and (servers, one.deployment.pools[1].servers) not in tried
            reach = one.score + self._correction(True) + REACH * self._deviation(one)
            if near and one.excess <= REACH * LIMIT_DOUBT and reach > best:
                return Proposal(BESIDE, one)
        return None

    def _launched(self, one: Foreseen) -> bool:
        return any(record.deployment == one.deployment for record in self.records)

    def _correction(self, apart: bool) -> float:
        """Return what launches of this kind gave over their prediction (log), shrunk as one launch may be chance."""
        residuals = self._residuals(apart)
        return sum(residuals) / (len(residuals) + 0.5)

    def _deviation(self, one: Foreseen) -> float:
        """Return how far (log) the rate may lie from what is expected of it."""
        if any(record.target is not None and record.label == one.deployment.name for record in self.records):
            return ALIKE
        return TRIED if self._residuals(one.apart) else UNTRIED

    def _residuals(self, apart: bool) -> list[float]:
        by_deployment = {one.deployment: one.score for one in self.foreseen}
        return [
            math.log(record.target.output_tok_s) - by_deployment[record.deployment]
            for record in self.records
            if record.target is not None and record.deployment in by_deployment and _is_apart(record) == apart
        ]


def _is_apart(record: TrialRecord) -> bool:
    return isinstance(record.deployment, Deployment) and record.deployment.pools[-1].role is Role.DECODE


def _ratio_of(record: TrialRecord) -> tuple[int, int]:
    assert isinstance(record.deployment, Deployment)
    prefill, decode = record.deployment.pools
    return prefill.servers, decode.servers
