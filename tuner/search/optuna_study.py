"""The Optuna study: an index over the evidence, rebuilt from it, that proposes the next parameters."""

from __future__ import annotations

import sqlite3
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from hwprobe.errors import InputError
from planner.plans.alternatives import DEFAULT, Choice
from tuner.choices import SamplerName
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.search.grid import Grid
from tuner.search.objective import Goal
from tuner.search.space import CORE, TuningSpace

TPE_STARTUP_TRIALS = 6
# Ruled-out proposals that samplers are told of, and launches of earlier sessions that study.db shows.
MOST_RULED_OUT, MOST_INDEXED = 5000, 30
INDEX_ERRORS = (OSError, sqlite3.Error, SQLAlchemyError, OptunaError)
# Numerical errors of a posterior: a random proposal takes its place, and the run goes on.
NUMERICS = (np.linalg.LinAlgError, ArithmeticError)
# Errors of Optuna's own samplers: an inconsistent study or a missing library (GPSampler needs torch).
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


class StudyFile:
    """study.db: the launches as others may look at them (optuna-dashboard). The run never reads it.

    Writes are not synced, and a failing disk or database costs the index, not the run.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._study: optuna.Study | None = None
        with self._or_without_it():
            file.unlink(missing_ok=True)
            storage = RDBStorage("sqlite://", engine_kwargs={"creator": self._connection})
            self._study = optuna.create_study(storage=storage, study_name="sgtune", direction="maximize")

    def add(self, trial: FrozenTrial | None) -> None:
        """Add a launch; skip one that samplers do not see."""
        if self._study is not None and trial is not None:
            with self._or_without_it():
                self._study.add_trial(trial)

    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, check_same_thread=False)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    @contextmanager
    def _or_without_it(self) -> Iterator[None]:
        try:
            yield
        except INDEX_ERRORS as error:
            self._study = None
            warnings.warn(f"{self._file} is not kept ({error}); the run goes on", SamplerWarning, stacklevel=3)


class StudyIndex:
    """Asks Optuna for parameters and tells it outcomes. The evidence is trials.jsonl, never this database.

    A configuration that failed is told as a completed trial with a violated constraint: samplers do not
    see failed ones. The sampler is seeded anew by (run seed, trial) before every proposal, so that a
    resumed run proposes what the uninterrupted one would have.
    """

    def __init__(self, file: Path, space: TuningSpace, records: Sequence[TrialRecord], proposer: Proposer) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)
        self._sampler, self._seed, self._space = proposer.sampler, proposer.seed, space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.choices.items()
        }
        by_model, by_grid = self._sampler is SamplerName.MODEL, self._sampler is SamplerName.GRID
        self._guide = _guide(space, self._distributions, proposer) if by_model else None
        self._grid = Grid(_to_walk(space), self._seed) if by_grid else None
        # Proposals are asked of a twin in memory: a study on disk would commit every parameter of every one of them.
        self._twin = optuna.create_study(direction="maximize")
        self._told = self._ruled_out = self._in_flight = 0
        self._index: StudyFile | None = None
        for record in records:
            self.tell(record)
        self._index = StudyFile(file)
        for record in [record for record in records if record.launched][-MOST_INDEXED:]:
            self._index.add(self._trial_of(record))

    @property
    def guided(self) -> bool:
        """Whether the sampler itself judges, by the calibrated model, which configurations could still win."""
        return self._guide is not None

    @property
    def exhaustive(self) -> bool:
        """Whether every configuration is proposed, even one not expected to win."""
        return self._grid is not None

    @property
    def why_none(self) -> str:
        """Say why there is no further proposal."""
        if self.exhaustive:
            return "every configuration of the space was tried"
        return "no launch is expected to improve on the best by more than measurements scatter"

    def propose(self, in_flight: Sequence[TrialRecord] = ()) -> dict[str, Any] | None:
        """Return the sampler's next parameters, given the launches in flight; None if none is worth a launch."""
        self._in_flight = len(in_flight)
        if self._grid is not None:
            for record in in_flight:
                self._grid.tried(record.params)
            return self._grid.next()
        if self._guide is not None:
            self._guide.beside(in_flight)
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

        One that failed says nothing; a second launch belongs to the end of a run, not to its search; a baseline outside
        a narrowed space is left out of the index, though the guide learns from it.
        """
        if record.repeats is not None:
            return
        if self._guide is not None:
            self._guide.observe(record)
        if self._grid is not None:
            self._grid.tried(record.params)
        if self._params_told(record) is None:
            return
        self._told += 1
        self._ruled_out += not record.launched
        to_twin = self._asks_the_twin and (record.launched or self._ruled_out <= MOST_RULED_OUT)
        to_index = self._index is not None and record.launched
        trial = self._trial_of(record) if to_twin or to_index else None  # a millisecond, of hundreds of thousands
        if to_twin and trial is not None:
            self._twin.add_trial(trial)
        if to_index and self._index is not None:
            self._index.add(trial)

    def _params_told(self, record: TrialRecord) -> dict[str, Any] | None:
        """Return a record's parameters for samplers, None for one they do not see."""
        if record.repeats is not None or record.outcome is TrialOutcome.FAILED:
            return None
        params = {**dict.fromkeys(self._space.defaults, DEFAULT), **record.params}
        inside = all(params.get(name) in values for name, values in self._space.choices.items())
        return params if inside else None

    def _trial_of(self, record: TrialRecord) -> FrozenTrial | None:
        """Return a record as samplers see it, None for one they do not see."""
        params = self._params_told(record)
        if params is None:
            return None
        return optuna.trial.create_trial(
            params=params,
            distributions=self._distributions,
            value=record.objective,
            constraints=dict(sorted(record.constraints.items())),
            user_attrs={"number": record.number, "outcome": str(record.outcome)},
        )

    @property
    def _asks_the_twin(self) -> bool:
        """Whether proposals depend on what the twin was told: the guide and the grid keep their own books."""
        return self._guide is None and self._grid is None and self._sampler is not SamplerName.RANDOM

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
        beside = f"+{self._in_flight}" if self._in_flight else ""
        return zlib.crc32(f"{self._seed}/{self._told}{beside}".encode())


def _to_walk(space: TuningSpace) -> dict[str, tuple[Choice, ...]]:
    """The knobs a grid combines: the modelled ones, and those a space file names; the others keep their default."""
    return {
        name: values if name in CORE or name in space.named else values[:1] for name, values in space.choices.items()
    }


def require_sklearn(option: str) -> None:
    """Raise InputError where the library behind an option is not installed."""
    if find_spec("sklearn") is None:
        raise InputError(
            f"{option} needs scikit-learn: in the checkout, pip install -e '.[tune]', or choose --sampler tpe"
        )


def _guide(space: TuningSpace, distributions: dict[str, BaseDistribution], proposer: Proposer) -> ModelGuidedSampler:
    require_sklearn("--sampler model")
    from tuner.search.guide import Guide  # scikit-learn is needed, and paid for, only here
    from tuner.search.model_sampler import ModelGuidedSampler

    return ModelGuidedSampler(Guide(space, proposer.goal), distributions, seed=proposer.seed)
