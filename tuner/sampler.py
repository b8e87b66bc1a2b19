"""ModelGuidedSampler: physics proposes, a Gaussian process learns where physics is wrong.

The prior mean of every configuration is the closed form. What may be wrong with it is a sum of normal effects:
each figure of the machine (through the equations' own slopes), each knob and each pair of knobs. Such a sum is a
Gaussian process with a linear kernel over those features; scikit-learn's does the regression. After every launch
the equations are evaluated anew where the data moved the machine's figures (Gauss-Newton), so that the prior mean
is the calibrated model's. The next launch is the one with the largest expected feasible improvement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.estimate import predict
from models.layout import Array, table_of
from models.memory import Memory
from models.workload import Slo
from tuner.candidates import PHYSICS, Candidates, candidates_of, knob_features, log_figure, slopes
from tuner.choices import Objective
from tuner.memory_offset import chance_it_holds, evidence
from tuner.record import Outcome, TrialRecord, best_of
from tuner.tuning_space import TuningSpace

try:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import DotProduct
except ImportError as error:
    raise InputError(
        "--sampler model needs scikit-learn: pip install 'sgtune[tune]', or choose --sampler tpe"
    ) from error

# A measurement's scatter, and what the closed form leaves against the replay.
SCATTER = 0.02
# One standard deviation of what is common to all rows: a benchmark's own bias.
COMMON = 0.05
COMMON_SLO = 0.40
ROUNDS = 2
# The most rows looked at, by predicted objective; and the leaders replayed before one is chosen.
MOST_ROWS = 1500
REPLAYED = 6
# A configuration likelier than this to run out of memory is not launched while others are left.
LEAST_CHANCE = 0.85
# Expected improvement, in log units, below which no measurement could tell the difference.
LEAST_IMPROVEMENT = 0.001


@dataclass(frozen=True, slots=True)
class Learned:
    """Posterior of one figure over the rows: mean and standard deviation of its logarithm, and the effects."""

    mean: Array
    deviation: Array
    departure: Array
    effects: dict[str, float]


class ModelGuidedSampler(BaseSampler):
    """Proposes rows of the feasible set; learns from records, which `observe` hands over in order."""

    def __init__(
        self,
        space: TuningSpace,
        distributions: dict[str, BaseDistribution],
        *,
        objective: Objective,
        slos: Sequence[Slo],
        seed: int,
    ) -> None:
        self._space, self._distributions = space, distributions
        self._metric = "output_tok_s" if objective is Objective.OUTPUT_TOK_S else "tpot"
        self._slos = tuple(slos)
        self._independent = RandomSampler(seed=seed)
        self._records: list[TrialRecord] = []
        self._rows = candidates_of(space)
        self._belief = log_figure(self._rows.steady(np.zeros(len(PHYSICS))), self._metric)
        self._replay_gap: dict[int, float] = {}
        self._next, self._expected, self._chosen_after = -1, 0.0, -1

    def observe(self, record: TrialRecord) -> None:
        """Take a finished trial into account."""
        self._records.append(record)

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
        return dict(self._rows.params[self._next]) if self.worth_a_launch() else {}

    def worth_a_launch(self) -> bool:
        """Choose the next row; say whether there is one that may improve by more than nobody could measure."""
        if self._chosen_after != len(self._records):
            rows = self._untried()
            self._next, self._expected = self._choose(rows) if len(rows) else (-1, 0.0)
            self._chosen_after = len(self._records)
        return self._next >= 0 and self._expected >= LEAST_IMPROVEMENT

    def _untried(self) -> Array:
        tried = {record.config for record in self._records}
        return np.array([i for i, config in enumerate(self._rows.configs) if config not in tried], dtype=np.intp)

    def _choose(self, rows: Array) -> tuple[int, float]:
        """Return the row to launch and its expected feasible improvement in log units."""
        holds = chance_it_holds(self._rows.memory.free[rows], evidence(self._records, self._space.context))
        safe = holds >= min(LEAST_CHANCE, float(holds.max()))
        rows, holds = rows[safe], holds[safe]
        sign = 1.0 if self._metric == "output_tok_s" else -1.0
        leading = np.argsort(-sign * self._belief[rows], kind="stable")[:MOST_ROWS]
        rows, holds = rows[leading], holds[leading]
        learned = self._learn(rows, self._metric, [(r, sign * r.objective) for r in self._measured()], COMMON)
        feasible = holds * self._within_limits(rows)
        best = best_of(self._records)
        floor = best.objective if best else -math.inf
        value = _improvement(sign * learned.mean, learned.deviation, floor) * feasible
        leaders = np.argsort(-value, kind="stable")[:REPLAYED]
        gaps = np.array([self._gap(int(rows[i])) for i in leaders])
        exact = _improvement(sign * (learned.mean[leaders] + gaps), learned.deviation[leaders], floor)
        gain = exact * feasible[leaders]
        first = int(np.argmax(gain))
        return int(rows[leaders[first]]), float(gain[first])

    def _measured(self) -> list[TrialRecord]:
        return [record for record in self._records if record.outcome is Outcome.MEASURED]

    def _within_limits(self, rows: Array) -> Array:
        """Return the chance that each row meets every limit."""
        chance = np.ones(len(rows))
        for slo in self._slos:
            seen = [(r, r.constraints[f"slo {slo}"] + math.log(slo.limit_ms)) for r in self._measured()]
            learned = self._learn(rows, str(slo.metric), seen, COMMON_SLO)
            chance *= _normal_below((math.log(slo.limit_ms) - learned.mean) / learned.deviation)
        return chance

    def _learn(self, rows: Array, metric: str, seen: list[tuple[TrialRecord, float]], common: float) -> Learned:
        """Regress log(measured) on slopes and knobs; evaluate the equations where the figures have moved to."""
        asked = Candidates(
            params=(), configs=tuple(self._rows.configs[i] for i in rows), space=self._space,
            memory=_ledger(self._space, [self._rows.configs[i] for i in rows]),
        )  # fmt: skip
        told_configs = tuple(record.config for record, _ in seen)
        departure = np.zeros(len(PHYSICS))
        gp = GaussianProcessRegressor(DotProduct(common, "fixed"), alpha=SCATTER**2, optimizer=None)
        names, features = knob_features(told_configs + asked.configs)
        count, surprise = len(told_configs), 1.0
        if count:
            told = Candidates(
                params=(), configs=told_configs, space=self._space, memory=_ledger(self._space, list(told_configs))
            )
            gap = np.array([self._told_gap(record, metric) for record, _ in seen])
            target = np.array([figure for _, figure in seen]) - gap
            for _ in range(ROUNDS):
                base, by = slopes(told, departure, metric)
                x = np.hstack([by, features[:count]])
                known = target - base + by @ departure
                gp.fit(x, known)
                weights = x.T @ gp.alpha_
                departure = np.clip(weights[: len(PHYSICS)], -3.0, 3.0)
            # Data that the prior calls impossible say that its spreads are too small, for every effect alike.
            surprise = math.sqrt(max(1.0, float(known @ gp.alpha_) / count))
        base, by = slopes(asked, departure, metric)
        mean, deviation = gp.predict(np.hstack([by, features[count:]]), return_std=True)
        effects = dict(zip(names, weights[len(PHYSICS) :].tolist(), strict=True)) if count else {}
        return Learned(base - by @ departure + mean, np.maximum(surprise * deviation, 1e-4), departure, effects)

    def _told_gap(self, record: TrialRecord, metric: str) -> float:
        """Log of replay over closed form under the belief: what the closed form misses of a launched trial."""
        key = {"output_tok_s": "output_tok_s", "tpot": "tpot_mean_ms", "ttft": "ttft_mean_ms"}.get(metric)
        if key is None or key not in record.predicted or metric == "ttft":
            return 0.0
        closed = _one(self._space, record, metric)
        return math.log(max(record.predicted[key], 1e-9)) - closed

    def _gap(self, row: int) -> float:
        if row not in self._replay_gap:
            predicted = predict(self._space.context, self._rows.configs[row], self._space.workload)
            figure = predicted.output_tok_s if self._metric == "output_tok_s" else predicted.tpot_ms["mean"]
            self._replay_gap[row] = math.log(max(figure, 1e-9)) - float(self._belief[row])
        return self._replay_gap[row]


def _ledger(space: TuningSpace, configs: list[ServerConfig]) -> Memory:
    return space.context.memory(table_of(configs))


def _one(space: TuningSpace, record: TrialRecord, metric: str) -> float:
    row = Candidates(params=(), configs=(record.config,), memory=_ledger(space, [record.config]), space=space)
    return float(log_figure(row.steady(np.zeros(len(PHYSICS))), metric)[0])


def _improvement(mean: Array, deviation: Array, floor: float) -> Array:
    """Expected improvement over `floor` in log units; the optimistic mean when nothing is measured yet."""
    if not math.isfinite(floor):
        return np.exp(mean - float(mean.max()))
    z = (mean - floor) / deviation
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (density + z * _normal_below(z)), 1e-300)


def _normal_below(z: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.ravel(z)])
