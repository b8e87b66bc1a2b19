"""ModelGuidedSampler: physics proposes, a Gaussian process learns where physics is wrong.

The prior mean of every configuration is the closed form. What may be wrong with it is a sum of normal effects:
each figure of the machine (through the equations' own slopes), each knob and each pair of knobs. Such a sum is a
Gaussian process with a linear kernel over those features; scikit-learn's does the regression. After every launch
the equations are evaluated anew where the data moved the machine's figures (Gauss-Newton), so that the prior mean
is the calibrated model's. The next launch is the one with the largest expected feasible improvement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.estimate import Prediction, predict
from models.layout import Array
from tuner.candidates import (
    PHYSICS,
    UNPRICED_SPREAD,
    Candidates,
    candidates_of,
    knob_features,
    rows_of,
    slopes,
    undominated,
)
from tuner.choices import Objective
from tuner.figures import Figure, of_goal, of_point
from tuner.goal import Goal
from tuner.memory_offset import chance_it_holds, evidence
from tuner.moves import Moves
from tuner.record import Outcome, TrialRecord, best_of
from tuner.tuning_space import CORE, TuningSpace

try:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import DotProduct
except ImportError as error:
    raise InputError(
        "--sampler model needs scikit-learn: in the checkout, pip install '.[tune]', or choose --sampler tpe"
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
# Leaders that moves along unpriced knobs start from, and rows that take over what the best one taught.
BASES = 2
MOVE_EVERY = 3
CARRIED_OVER = 20
# A configuration likelier than this to run out of memory is not launched while others are left.
LEAST_CHANCE = 0.85
# Expected improvement, in log units, below which no measurement could tell the difference.
LEAST_IMPROVEMENT = 0.001
# How much a missed limit counts against the objective while rows are ordered by belief (log units for log units).
MISS_WEIGHT = 5.0

# What the replay predicts of an objective, by the name it has in a record; users and goodput have closed forms only.
REPLAYED_FIGURE = {
    Objective.OUTPUT_TOK_S: "output_tok_s",
    Objective.OUTPUT_TOK_S_PER_GPU: "output_tok_s",
    Objective.OUTPUT_TOK_S_PER_COST: "output_tok_s",
    Objective.TPOT: "tpot_mean_ms",
}


@dataclass(frozen=True, slots=True)
class Learned:
    """Posterior of one figure over the rows: mean and standard deviation of its logarithm."""

    mean: Array
    deviation: Array


class ModelGuidedSampler(BaseSampler):
    """Proposes rows of the feasible set; learns from records, which `observe` hands over in order."""

    def __init__(
        self, space: TuningSpace, distributions: dict[str, BaseDistribution], *, goal: Goal, seed: int
    ) -> None:
        self._space, self._distributions, self._goal = space, distributions, goal
        self._figure = of_goal(goal)
        self._sign = -1.0 if goal.lower_is_better else 1.0
        self._independent = RandomSampler(seed=seed)
        self._records: list[TrialRecord] = []
        self._rows = self._ranked(candidates_of(space))
        self._moves = Moves(space)
        self._replay_gap: dict[ServerConfig, float] = {}
        self._next: dict[str, Any] | None = None
        self._expected, self._chosen_after = 0.0, -1

    def _ranked(self, rows: Candidates) -> Candidates:
        """Return the rows that could matter in order of belief: what misses a limit far behind the rest."""
        nothing = np.zeros(len(PHYSICS))
        belief = self._sign * self._figure(rows, nothing)
        excess = np.zeros(len(belief))
        for slo in self._goal.constraining if self._goal.objective is not Objective.USERS else ():
            excess = np.maximum(excess, of_point(str(slo.metric))(rows, nothing) - math.log(slo.limit_ms))
        kept = undominated(rows, belief, excess)
        order = np.argsort(MISS_WEIGHT * excess[kept] - belief[kept], kind="stable")
        return rows.take(kept[order])

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
        return dict(self._next) if self.worth_a_launch() and self._next is not None else {}

    def worth_a_launch(self) -> bool:
        """Choose the next row; say whether there is one that may improve by more than nobody could measure."""
        if self._chosen_after != len(self._records):
            self._next, self._expected = self._choose()
            self._chosen_after = len(self._records)
        return self._next is not None and self._expected >= LEAST_IMPROVEMENT

    def _choose(self) -> tuple[dict[str, Any] | None, float]:
        """Return the parameters to launch and their expected feasible improvement in log units.

        While a priced row is worth a launch, at most one in MOVE_EVERY goes to a move along unpriced knobs.
        """
        best = best_of(self._records)
        floor = best.objective if best else -math.inf
        core, holds = self._likely(self._untried(self._rows), most=MOST_ROWS)
        chosen, gain = self._best_of(core, holds, floor, best)
        if best is None or (self._just_moved() and gain >= LEAST_IMPROVEMENT):
            return chosen, gain
        measured = sorted((r for r in self._records if r.feasible and r.repeats is None), key=lambda r: -r.objective)
        moved, holds = self._likely(self._untried(self._moves.around([r.params for r in measured[:BASES]])))
        move, worth = self._best_of(moved, holds, floor, None)
        return (move, worth) if worth > gain else (chosen, gain)

    def _just_moved(self) -> bool:
        """Say whether one of the last launches differs from an earlier one in unpriced knobs alone."""
        launched = [record.params for record in self._records if record.launched and record.repeats is None]

        def priced(params: dict[str, Any]) -> list[Any]:
            return [params.get(name) for name in CORE]

        last = range(max(0, len(launched) - MOVE_EVERY + 1), len(launched))
        return any(priced(launched[at]) in [priced(params) for params in launched[:at]] for at in last)

    def _best_of(
        self, rows: Candidates, holds: Array, floor: float, leader: TrialRecord | None
    ) -> tuple[dict[str, Any] | None, float]:
        """Return the best of these rows and what it is worth; those ahead also with the leader's unpriced knobs."""
        if not rows.configs:
            return None, 0.0
        value, learned, feasible = self._worth(rows, holds, floor)
        if leader is not None and any(leader.params.get(name, at) != at for name, at in self._space.resting.items()):
            first = np.argsort(-value, kind="stable")[:CARRIED_OVER]
            more = self._untried(self._moves.carried_over([rows.params[i] for i in first], leader.params))
            more, holds = self._likely(more)
            if more.configs:
                rows = more
                value, learned, feasible = self._worth(rows, holds, floor)
        leaders = np.argsort(-value, kind="stable")[:REPLAYED]
        gaps = np.array([self._gap(rows, int(i)) for i in leaders])
        gain = _improvement(learned.mean[leaders] + gaps, learned.deviation[leaders], floor) * feasible[leaders]
        place = int(np.argmax(gain))
        return rows.params[int(leaders[place])], float(gain[place])

    def _likely(self, rows: Candidates, most: int | None = None) -> tuple[Candidates, Array]:
        """Leave out what is likely to run out of memory while others are left; at most so many, in order."""
        if not rows.configs:
            return rows, np.zeros(0)
        holds = chance_it_holds(rows.memory.free, evidence(self._records, self._space.context))
        safe = np.flatnonzero(holds >= min(LEAST_CHANCE, float(holds.max())))[:most]
        return rows.take(safe), holds[safe]

    def _untried(self, rows: Candidates) -> Candidates:
        tried = {record.config for record in self._records}
        return rows.take(np.array([i for i, c in enumerate(rows.configs) if c not in tried], dtype=np.intp))

    def _worth(self, rows: Candidates, holds: Array, floor: float) -> tuple[Array, Learned, Array]:
        """Return every row's expected feasible improvement, what is learned of its objective, and its feasibility."""
        shift = np.array([self._goal.shift(config) for config in rows.configs])
        seen = [(r, self._sign * r.objective - self._goal.shift(r.config)) for r in self._measured()]
        raw = self._learn(rows, self._figure, seen, COMMON)
        learned = Learned(self._sign * raw.mean + shift, raw.deviation)
        feasible = holds * self._within_limits(rows)
        return _improvement(learned.mean, learned.deviation, floor) * feasible, learned, feasible

    def _measured(self) -> list[TrialRecord]:
        return [record for record in self._records if record.outcome is Outcome.MEASURED]

    def _within_limits(self, rows: Candidates) -> Array:
        """Return the chance that each row meets every limit that is not part of the objective itself."""
        chance = np.ones(len(rows.configs))
        if self._goal.objective is Objective.USERS:
            return chance
        for slo in self._goal.constraining:
            seen = [(r, r.constraints[f"slo {slo}"] + math.log(slo.limit_ms)) for r in self._measured()]
            learned = self._learn(rows, of_point(str(slo.metric)), seen, COMMON_SLO)
            chance *= _normal_below((math.log(slo.limit_ms) - learned.mean) / learned.deviation)
        return chance

    def _learn(
        self, asked: Candidates, figure: Figure, seen: list[tuple[TrialRecord, float]], common: float
    ) -> Learned:
        """Regress log(measured) on slopes and knobs; evaluate the equations where the figures have moved to."""
        told = rows_of(self._space, [(record.params, record.config) for record, _ in seen])
        departure = np.zeros(len(PHYSICS))
        gp = GaussianProcessRegressor(DotProduct(common, "fixed"), alpha=SCATTER**2, optimizer=None)
        names, features = knob_features((told, asked))
        count, surprise = len(seen), 1.0
        if count:
            target = np.array([value - self._told_gap(record, figure) for record, value in seen])
            for _ in range(ROUNDS):
                base, by = slopes(told, departure, figure)
                x = np.hstack([by, features[:count]])
                known = target - base + by @ departure
                gp.fit(x, known)
                weights = x.T @ gp.alpha_
                departure = np.clip(weights[: len(PHYSICS)], -3.0, 3.0)
            # Data that the prior calls impossible say that its spreads are too small, for every effect alike.
            surprise = math.sqrt(max(1.0, float(known @ gp.alpha_) / count))
        base, by = slopes(asked, departure, figure)
        mean, deviation = gp.predict(np.hstack([by, features[count:]]), return_std=True)
        # That holds for what the data are about: an unpriced setting never launched keeps the spread it was given.
        new = [name.split()[0] in UNPRICED_SPREAD and not features[:count, i].any() for i, name in enumerate(names)]
        unseen = np.square(features[count:][:, new]).sum(axis=1)
        variance = surprise**2 * np.maximum(np.square(deviation) - unseen, 0.0) + unseen
        return Learned(base - by @ departure + mean, np.maximum(np.sqrt(variance), 1e-4))

    def _told_gap(self, record: TrialRecord, figure: Figure) -> float:
        """Log of replay over closed form under the belief: what the closed form misses of a launched trial."""
        if figure is not self._figure or self._goal.objective not in REPLAYED_FIGURE:
            return 0.0
        rows = rows_of(self._space, [(record.params, record.config)])
        replayed = record.predicted[REPLAYED_FIGURE[self._goal.objective]]
        return math.log(max(replayed, 1e-9)) - float(figure(rows, np.zeros(len(PHYSICS)))[0])

    def _gap(self, rows: Candidates, index: int) -> float:
        """The same of a row that may be launched next, with the sign of the objective."""
        if self._goal.objective not in REPLAYED_FIGURE:
            return 0.0
        config = rows.configs[index]
        if config not in self._replay_gap:
            replayed = _figure_of(predict(self._space.context, config, self._space.workload), self._goal)
            closed = float(self._figure(rows.take(np.array([index])), np.zeros(len(PHYSICS)))[0])
            self._replay_gap[config] = self._sign * (math.log(max(replayed, 1e-9)) - closed)
        return self._replay_gap[config]


def _figure_of(predicted: Prediction, goal: Goal) -> float:
    return predicted.tpot_ms["mean"] if goal.objective is Objective.TPOT else predicted.output_tok_s


def _improvement(mean: Array, deviation: Array, floor: float) -> Array:
    """Expected improvement over `floor` in log units; the optimistic mean when nothing is measured yet."""
    if not math.isfinite(floor):
        return np.exp(mean - float(mean.max()))
    z = (mean - floor) / deviation
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (density + z * _normal_below(z)), 1e-300)


def _normal_below(z: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.ravel(z)])
