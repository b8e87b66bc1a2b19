"""The Optuna study: an index over the evidence, rebuilt from it, that proposes the next parameters."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage

from models.workload import Slo
from tuner.choices import Objective, SamplerName
from tuner.grid import Grid
from tuner.record import Outcome, TrialRecord
from tuner.tuning_space import TuningSpace

TPE_STARTUP_TRIALS = 6

if TYPE_CHECKING:
    from tuner.sampler import ModelGuidedSampler


class StudyIndex:
    """Asks Optuna for parameters and tells it outcomes. The evidence is trials.jsonl, never this database.

    A configuration that failed is told as a completed trial with a violated constraint: samplers do not
    see failed ones. The sampler is seeded anew by (run seed, trial) before every proposal, so that a
    resumed run proposes what the uninterrupted one would have.
    """

    def __init__(
        self,
        file: Path,
        space: TuningSpace,
        records: Sequence[TrialRecord],
        *,
        sampler: SamplerName,
        seed: int,
        objective: Objective = Objective.OUTPUT_TOK_S,
        slos: Sequence[Slo] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)
        file.unlink(missing_ok=True)
        self._sampler, self._seed, self._space = sampler, seed, space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.choices.items()
        }
        self._guide = (
            _guide(space, self._distributions, objective, slos, seed) if sampler is SamplerName.MODEL else None
        )
        self._grid = Grid(space.choices, seed) if sampler is SamplerName.GRID else None
        self._study = optuna.create_study(
            storage=RDBStorage(f"sqlite:///{file}"), study_name="sgtune", direction="maximize"
        )
        for record in records:
            self.tell(record)

    @property
    def guided(self) -> bool:
        """Whether the sampler judges by the calibrated model itself what could still win."""
        return self._guide is not None

    @property
    def exhaustive(self) -> bool:
        """Whether every configuration is wanted, those too that are not expected to win."""
        return self._grid is not None

    @property
    def why_none(self) -> str:
        """Say why there is no further proposal."""
        if self.exhaustive:
            return "every configuration of the space was tried"
        return "no launch is expected to improve on the best by more than measurements scatter"

    def propose(self) -> dict[str, Any] | None:
        """Return the next parameters the sampler would try, None when none is worth a launch."""
        if self._guide is not None and not self._guide.worth_a_launch():
            return None
        if self._grid is not None:
            return self._grid.next()
        self._study.sampler = self._fresh_sampler()
        trial = self._study.ask(self._distributions)
        params = dict(trial.params)
        # The proposal becomes a trial of the index only with its outcome, in `tell`.
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return params

    def tell(self, record: TrialRecord) -> None:
        """Add a finished trial, with every constraint under a sorted key.

        One that failed says nothing; a second launch belongs to the end of a run, not to its search; a baseline
        outside a narrowed space has no place in the index, though the guide learns from it.
        """
        if record.repeats is not None:
            return
        if self._guide is not None:
            self._guide.observe(record)
        if self._grid is not None:
            self._grid.tried(record.params)
        inside = all(value in self._space.choices[name] for name, value in record.params.items())
        if record.outcome is Outcome.FAILED or not inside:
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                params=record.params,
                distributions=self._distributions,
                value=record.objective,
                constraints=dict(sorted(record.constraints.items())),
                user_attrs={"number": record.number, "outcome": str(record.outcome)},
            )
        )

    def _fresh_sampler(self) -> BaseSampler:
        if self._guide is not None:
            return self._guide
        told = sum(t.state == optuna.trial.TrialState.COMPLETE for t in self._study.get_trials(deepcopy=False))
        seed = zlib.crc32(f"{self._seed}/{told}".encode())
        if self._sampler is SamplerName.RANDOM:
            return RandomSampler(seed=seed)
        if self._sampler is SamplerName.GP:
            return GPSampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS, deterministic_objective=False)
        return TPESampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS)


def _guide(
    space: TuningSpace,
    distributions: dict[str, BaseDistribution],
    objective: Objective,
    slos: Sequence[Slo],
    seed: int,
) -> ModelGuidedSampler:
    from tuner.sampler import ModelGuidedSampler  # scikit-learn is needed, and paid for, only here

    return ModelGuidedSampler(space, distributions, objective=objective, slos=slos, seed=seed)
