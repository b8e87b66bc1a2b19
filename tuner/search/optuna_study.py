"""The Optuna study: an index over the evidence, rebuilt from it, that proposes the next parameters."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage

from hwprobe.errors import InputError
from planner.plans.alternatives import DEFAULT, Choice
from tuner.choices import SamplerName
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.search.grid import Grid
from tuner.search.objective import Goal
from tuner.search.space import CORE, TuningSpace

TPE_STARTUP_TRIALS = 6
# Numerics that a posterior may run into: a random proposal takes the place of one, and the run goes on.
NUMERICS = (np.linalg.LinAlgError, ArithmeticError)
# What Optuna's own samplers raise of an inconsistent study or a missing library (GPSampler needs torch).
OPTUNA_ERRORS = (*NUMERICS, ValueError, RuntimeError, ImportError)

if TYPE_CHECKING:
    from tuner.search.model_sampler import ModelGuidedSampler


class SamplerWarning(UserWarning):
    """A sampler failed, and a random proposal took its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposer:
    """What proposes: a sampler by name, its seed, and the goal a model needs to know."""

    sampler: SamplerName
    seed: int
    goal: Goal = field(default_factory=Goal)


class StudyIndex:
    """Asks Optuna for parameters and tells it outcomes. The evidence is trials.jsonl, never this database.

    A configuration that failed is told as a completed trial with a violated constraint: samplers do not
    see failed ones. The sampler is seeded anew by (run seed, trial) before every proposal, so that a
    resumed run proposes what the uninterrupted one would have.
    """

    def __init__(self, file: Path, space: TuningSpace, records: Sequence[TrialRecord], proposer: Proposer) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)
        file.unlink(missing_ok=True)
        self._sampler, self._seed, self._space = proposer.sampler, proposer.seed, space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.choices.items()
        }
        by_model, by_grid = self._sampler is SamplerName.MODEL, self._sampler is SamplerName.GRID
        self._guide = _guide(space, self._distributions, proposer) if by_model else None
        self._grid = Grid(_to_walk(space), self._seed) if by_grid else None
        self._study = optuna.create_study(
            storage=RDBStorage(f"sqlite:///{file}"), study_name="sgtune", direction="maximize"
        )
        # Proposals are asked of a twin in memory: a study on disk would commit every parameter of every one of them.
        self._twin = optuna.create_study(direction="maximize")
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
        if self._grid is not None:
            return self._grid.next()
        expected: tuple[type[Exception], ...] = NUMERICS if self.guided else OPTUNA_ERRORS
        try:
            if self._guide is not None and not self._guide.worth_a_launch():
                return None
            return self._ask(self._fresh_sampler())
        except expected as error:
            warnings.warn(
                f"the sampler '{self._sampler}' failed ({type(error).__name__}: {error}); a random proposal goes on",
                SamplerWarning,
                stacklevel=2,
            )
            return self._ask(RandomSampler(seed=self._proposal_seed()))

    def _ask(self, sampler: BaseSampler) -> dict[str, Any]:
        self._twin.sampler = sampler
        trial = self._twin.ask(self._distributions)
        # The proposal becomes a trial of the index only with its outcome, in `tell`.
        self._twin.tell(trial, state=optuna.trial.TrialState.FAIL)
        return dict(trial.params)

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
        params = {**dict.fromkeys(self._space.resting, DEFAULT), **record.params}
        inside = all(params[name] in values for name, values in self._space.choices.items())
        if record.outcome is TrialOutcome.FAILED or not inside:
            return
        told = optuna.trial.create_trial(
            params=params,
            distributions=self._distributions,
            value=record.objective,
            constraints=dict(sorted(record.constraints.items())),
            user_attrs={"number": record.number, "outcome": str(record.outcome)},
        )
        for study in (self._study, self._twin):
            study.add_trial(told)

    def _fresh_sampler(self) -> BaseSampler:
        if self._guide is not None:
            return self._guide
        seed = self._proposal_seed()
        if self._sampler is SamplerName.RANDOM:
            return RandomSampler(seed=seed)
        if self._sampler is SamplerName.GP:
            return GPSampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS, deterministic_objective=False)
        return TPESampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS)

    def _proposal_seed(self) -> int:
        told = sum(t.state == optuna.trial.TrialState.COMPLETE for t in self._twin.get_trials(deepcopy=False))
        return zlib.crc32(f"{self._seed}/{told}".encode())


def _to_walk(space: TuningSpace) -> dict[str, tuple[Choice, ...]]:
    """What a grid combines: the priced knobs, and of the others those a space file names; the rest stay where it is."""
    return {
        name: values if name in CORE or name in space.named else values[:1] for name, values in space.choices.items()
    }


def _guide(space: TuningSpace, distributions: dict[str, BaseDistribution], proposer: Proposer) -> ModelGuidedSampler:
    if find_spec("sklearn") is None:
        raise InputError(
            "--sampler model needs scikit-learn: in the checkout, pip install '.[tune]', or choose --sampler tpe"
        )
    from tuner.search.model_sampler import ModelGuidedSampler  # scikit-learn is needed, and paid for, only here

    return ModelGuidedSampler(space, distributions, goal=proposer.goal, seed=proposer.seed)
