"""ModelGuidedSampler: Optuna's door to the guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from tuner.evidence.trial import TrialRecord
from tuner.search.guide import LEAST_IMPROVEMENT, Guide


class ModelGuidedSampler(BaseSampler):
    """Proposes the row the guide would launch; learns from records, which `observe` hands over in order."""

    def __init__(self, guide: Guide, distributions: dict[str, BaseDistribution], *, seed: int) -> None:
        self._guide, self._distributions = guide, distributions
        self._independent = RandomSampler(seed=seed)
        self._in_flight: tuple[TrialRecord, ...] = ()
        self._next: dict[str, Any] | None = None
        self._expected, self._stale = 0.0, True

    def beside(self, in_flight: Sequence[TrialRecord]) -> None:
        """Say which launches are in flight: the next proposal is made beside them."""
        numbers = [record.number for record in in_flight]
        self._stale = self._stale or numbers != [record.number for record in self._in_flight]
        self._in_flight = tuple(in_flight)

    def observe(self, record: TrialRecord) -> None:
        """Take a finished trial into account."""
        self._guide.observe(record)
        self._stale = True

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the row with the most expected feasible improvement."""
        return dict(self._next) if self.worth_a_launch() and self._next is not None else {}

    def worth_a_launch(self) -> bool:
        """Choose the next row; say whether its expected gain exceeds measurement noise."""
        if self._stale:
            self._next, self._expected = self._guide.choose(self._in_flight)
            self._stale = False
        return self._next is not None and self._expected >= LEAST_IMPROVEMENT
