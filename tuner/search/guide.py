"""Guide: physics proposes, a Gaussian process learns where physics is wrong.

The prior mean of every configuration is the closed form. Its error is a sum of normal effects: each figure of the
machine (through the equations' own slopes), each knob and each pair of knobs. Such a sum is a Gaussian process with a
linear kernel over those features; scikit-learn's does the regression. After every launch the equations are evaluated
anew where the data moved the machine's figures (Gauss-Newton), so that the prior mean is the calibrated model's. The
next launch is the one with the largest expected feasible improvement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.config import ServerConfig
from models.layout import Array
from models.serving.estimate import Prediction
from models.traffic.traced_workload import TracedWorkload
from models.workload import Slo
from planner.traffic_plans.traced import TracedPrediction, predict_load
from tuner.choices import Objective
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.search.closed_form import Figure, of_goal, of_point
from tuner.search.configurations import (
    PHYSICS,
    Candidates,
    candidates_of,
    rows_of,
    undominated,
)
from tuner.search.expected_improvement import chance_below, expected_improvement, nothing_to_beat
from tuner.search.gaussian_process import Posterior, TrainingSet, learn
from tuner.search.memory_belief import chance_it_holds, evidence
from tuner.search.objective import Goal
from tuner.search.space import CORE, TuningSpace
from tuner.search.unmodelled_knobs import UnmodelledKnobs

# One standard deviation of an effect common to all rows: a benchmark's bias.
COMMON = 0.05
COMMON_SLO = 0.40
# The most rows looked at, by predicted objective; and the leaders replayed before one is chosen.
MOST_ROWS = 1500
REPLAYED = 20
# Leaders whose unmodelled knobs are varied, and rows that take over what the best one taught.
BASES = 2
MOVE_EVERY = 3
CARRIED_OVER = 20
# A configuration likelier than this to run out of memory is not launched while others are left.
LEAST_CHANCE = 0.85
# While no launch kept the limits, one that probably does comes first: there is no best to improve on yet.
EVEN_CHANCE = 0.5
UNLIKELY = 1e-3
# Expected improvement, in log units, too small to measure.
LEAST_IMPROVEMENT = 0.001
# How much a missed limit counts against the objective while rows are ordered by belief (log units for log units).
MISS_WEIGHT = 5.0

# Reads a figure, not its logarithm, from a replay.
Read = Callable[[Prediction], float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFigure:
    """A figure to learn: its key in records of slices ("tpot", "output_tok_s", "slo ..."), its closed form, how to read
    it from a replay, and the spread of what all rows share."""

    key: str
    figure: Figure
    read: Read
    common: float


# Slices' measurements of a quantity; None without any.
Slices = Callable[[LearnedFigure], TrainingSet | None]


@dataclass(frozen=True, slots=True)
class Leader:
    """A row worth a launch, and its expected feasible improvement in log units."""

    params: dict[str, Any]
    config: ServerConfig
    gain: float


class Guide:
    """Chooses among rows of the feasible set; learns from records, which `observe` takes in order.

    `slices` hands over what slices of the model showed of a quantity (by its key), where slices are tried.
    """

    def __init__(self, space: TuningSpace, goal: Goal, slices: Slices | None = None) -> None:
        self._space, self._goal, self._slices = space, goal, slices
        self._figure = of_goal(goal)
        self._sign = -1.0 if goal.lower_is_better else 1.0
        self._records: list[TrialRecord] = []
        # Launches in flight, counted as measured at their expectation (kriging believer).
        self._believed: list[TrialRecord] = []
        self._rows = self._ranked(candidates_of(space))
        self._unmodelled = UnmodelledKnobs(space)
        self._replays: dict[ServerConfig, Prediction] = {}
        # Share of a knob's effect on slices that is expected on the whole model, as learned last.
        self.carry = 1.0

    def _ranked(self, rows: Candidates) -> Candidates:
        """Return the rows that could matter in order of belief: what misses a limit far behind the rest."""
        nothing = np.zeros(len(PHYSICS))
        belief = self._sign * self._figure(rows, nothing)
        excess = np.zeros(len(belief))
        for slo in self._goal.constraining if self._goal.objective is not Objective.USERS else ():
            excess = np.maximum(excess, of_point(str(slo.metric))(rows, nothing) - math.log(slo.limit_ms))
        survivors = undominated(rows, belief, excess)
        order = np.argsort(MISS_WEIGHT * excess[survivors] - belief[survivors], kind="stable")
        return rows.take(survivors[order])

    def observe(self, record: TrialRecord) -> None:
        """Take a finished trial into account."""
        self._records.append(record)

    def choose(self, in_flight: Sequence[TrialRecord] = ()) -> tuple[dict[str, Any] | None, float]:
        """Return the parameters to launch and their expected feasible improvement in log units.

        Launches `in_flight` count as measured at their expectation, one after the other. While a priced row is worth a
        launch, at most one in MOVE_EVERY goes to a move along unpriced knobs.
        """
        self._believed = []
        for record in in_flight:
            self._believed.append(self._as_expected(record))
        best = best_of(self._known)
        core, holds = self._likely(self._untried(self._rows), most=MOST_ROWS)
        candidate, gain = self._best_of(core, holds, best)
        if best is None or (self._just_moved() and gain >= LEAST_IMPROVEMENT):
            return candidate, gain
        measured = sorted((r for r in self._known if r.feasible and r.repeats is None), key=lambda r: -r.objective)
        moved, holds = self._likely(self._untried(self._unmodelled.around([r.params for r in measured[:BASES]])))
        move, worth = self._best_of(moved, holds, None)
        return (move, worth) if worth > gain else (candidate, gain)

    @property
    def _known(self) -> list[TrialRecord]:
        return [*self._records, *self._believed]

    def _as_expected(self, record: TrialRecord) -> TrialRecord:
        """Return a launch in flight as measured, with the posterior's mean for objective and limits."""
        row = rows_of(self._space, [(record.params, record.config)])
        learned, best = self._objective(row, replayed=True), best_of(self._measured())
        ahead = float((learned.weight @ learned.mean)[0])
        limits = {}
        for slo in self._limits:
            limited = self._limited(row, slo, replayed=True)
            limits[f"slo {slo}"] = float((limited.weight @ limited.mean)[0]) - math.log(slo.limit_ms)
        return replace(
            record,
            outcome=TrialOutcome.MEASURED,
            objective=ahead + (best.objective if best else 0.0),
            constraints={**record.constraints, "memory": -1.0, **limits},
        )

    def leaders(self, unfit: Collection[ServerConfig] = ()) -> list[Leader]:
        """Return the priced rows most worth a launch, best first; `unfit` ones are left out."""
        rows, holds = self._likely(self._untried(self._rows, unfit), most=MOST_ROWS)
        if not rows.configs:
            return []
        leaders, gain = self._replayed(rows, holds, self._worth(rows, holds))
        order = np.argsort(-gain, kind="stable").tolist()
        return [Leader(leaders.params[i], leaders.configs[i], float(gain[i])) for i in order]

    def _just_moved(self) -> bool:
        """Say whether one of the last launches differs from an earlier one in unpriced knobs alone."""
        launched = [record.params for record in self._known if record.launched and record.repeats is None]

        def priced(params: dict[str, Any]) -> list[Any]:
            return [params.get(name) for name in CORE]

        last = range(max(0, len(launched) - MOVE_EVERY + 1), len(launched))
        return any(priced(launched[at]) in [priced(params) for params in launched[:at]] for at in last)

    def _best_of(
        self, rows: Candidates, holds: Array, leader: TrialRecord | None
    ) -> tuple[dict[str, Any] | None, float]:
        """Return the best of these rows and its worth; those ahead also with the leader's unmodelled knobs.

        The closed form chooses whom to replay, the replay whom to launch.
        """
        if not rows.configs:
            return None, 0.0
        value = self._worth(rows, holds)
        if leader is not None and any(leader.params.get(name, at) != at for name, at in self._space.defaults.items()):
            first = np.argsort(-value, kind="stable")[:CARRIED_OVER]
            more = self._untried(self._unmodelled.carried_over([rows.params[i] for i in first], leader.params))
            more, likely = self._likely(more)
            if more.configs:
                rows, holds, value = more, likely, self._worth(more, likely)
        leaders, gain = self._replayed(rows, holds, value)
        place = int(np.argmax(gain))
        return leaders.params[place], float(gain[place])

    def _replayed(self, rows: Candidates, holds: Array, value: Array) -> tuple[Candidates, Array]:
        """Return the leaders by `value`, and the worth of each by replay."""
        ahead = np.argsort(-value, kind="stable")[:REPLAYED]
        leaders = rows.take(ahead)
        return leaders, self._worth(leaders, holds[ahead], replayed=True)

    def _likely(self, rows: Candidates, most: int | None = None) -> tuple[Candidates, Array]:
        """Leave out rows likely to run out of memory while others remain; at most so many, in order."""
        if not rows.configs:
            return rows, np.zeros(0)
        holds = chance_it_holds(rows.memory.free, evidence(self._records, self._space.context))
        safe = np.flatnonzero(holds >= min(LEAST_CHANCE, float(holds.max())))[:most]
        return rows.take(safe), holds[safe]

    def _untried(self, rows: Candidates, unfit: Collection[ServerConfig] = ()) -> Candidates:
        tried = {record.config for record in self._known} | set(unfit)
        return rows.take(np.array([i for i, c in enumerate(rows.configs) if c not in tried], dtype=np.intp))

    def _worth(self, rows: Candidates, holds: Array, *, replayed: bool = False) -> Array:
        """Return every row's expected feasible improvement in log units; relative to the best when none is measured."""
        learned = self._objective(rows, replayed)
        feasible = holds * self._within_limits(rows, replayed)
        if best_of(self._known) is not None:
            return learned.weight @ expected_improvement(learned.mean, learned.deviation) * feasible
        likely = feasible >= min(EVEN_CHANCE, float(feasible.max()))
        return nothing_to_beat(learned.weight @ learned.mean) * feasible * np.where(likely, 1.0, UNLIKELY)

    def _objective(self, rows: Candidates, replayed: bool) -> Posterior:
        """Return the posterior of the rows' objective, relative to the best measured one if any."""
        measured, goal = self._measured(), self._goal
        log_measured = [self._sign * r.objective - goal.shift(r.config) for r in measured]
        best = best_of(measured)
        against = next((i for i, record in enumerate(measured) if record is best), None)
        key = "tpot" if goal.objective is Objective.TPOT else "output_tok_s"
        figure = LearnedFigure(key=key, figure=self._figure, read=self._read(), common=COMMON)
        raw = self._learn(rows, np.array(log_measured), figure, replayed=replayed, against=against)
        self.carry = raw.carry
        shift = np.array([goal.shift(config) for config in rows.configs]) - (goal.shift(best.config) if best else 0.0)
        return Posterior(self._sign * raw.mean + shift, raw.deviation, raw.weight)

    def _learn(
        self,
        rows: Candidates,
        log_measured: Array,
        quantity: LearnedFigure,
        *,
        replayed: bool,
        against: int | None = None,
    ) -> Posterior:
        """Learn a quantity from its measurements; the closed form's error against the replay counts as known.

        A row that is not replayed is taken to miss as much as those that were launched.
        """
        measured = self._measured()
        launched = rows_of(self._space, [(record.params, record.config) for record in measured])
        missed = self._missed(launched, quantity)
        typical = float(missed[against] if against is not None else missed.mean() if len(missed) else 0.0)
        ran = tuple(record.place.nodes if record.place else () for record in measured)
        train = [TrainingSet(rows=launched, log_measured=log_measured - missed, nodes=ran)]
        if self._slices is not None and (shown := self._slices(quantity)) is not None:
            train.append(shown)
        learned = learn(train, rows, quantity.figure, quantity.common, against)
        gap = self._missed(rows, quantity) if replayed else np.full(len(rows.configs), typical)
        return replace(learned, mean=learned.mean + gap - (missed[against] if against is not None else 0.0))

    def _missed(self, rows: Candidates, quantity: LearnedFigure) -> Array:
        """Return log(replay / closed form) of every row under the belief; 0 where a figure is not in the replay."""
        if quantity.read is None or not rows.configs:
            return np.zeros(len(rows.configs))
        replayed = [max(quantity.read(self._replay(config)), 1e-9) for config in rows.configs]
        return np.log(replayed) - quantity.figure(rows, np.zeros(len(PHYSICS)))

    def _replay(self, config: ServerConfig) -> Prediction:
        if config not in self._replays:
            space, slos = self._space, self._goal.slos
            self._replays[config] = predict_load(space.context, config, space.workload, slos)
        return self._replays[config]

    def _read(self) -> Read:
        """Return how to read the objective from a replay: goodput only from that of a trace."""
        if self._goal.objective is Objective.GOODPUT and isinstance(self._space.workload, TracedWorkload):
            return self._goodput
        return _objective_of(self._goal)

    def _goodput(self, predicted: Prediction) -> float:
        return self._goal.goodput(predicted.goodput_rps if isinstance(predicted, TracedPrediction) else 0.0)

    def _measured(self) -> list[TrialRecord]:
        return [record for record in self._known if record.outcome is TrialOutcome.MEASURED]

    def _within_limits(self, rows: Candidates, replayed: bool) -> Array:
        """Return the chance that each row meets every limit that is not part of the objective itself."""
        chance = np.ones(len(rows.configs))
        for slo in self._limits:
            learned = self._limited(rows, slo, replayed)
            below = chance_below((math.log(slo.limit_ms) - learned.mean) / learned.deviation)
            chance *= learned.weight @ below
        return chance

    @property
    def _limits(self) -> tuple[Slo, ...]:
        """The limits that are not part of the objective itself."""
        return () if self._goal.objective is Objective.USERS else tuple(self._goal.constraining)

    def _limited(self, rows: Candidates, slo: Slo, replayed: bool) -> Posterior:
        """Return the posterior of a limit's figure."""
        key = f"slo {slo}"
        log_measured = [record.constraints[key] + math.log(slo.limit_ms) for record in self._measured()]
        figure = of_point(str(slo.metric))
        quantity = LearnedFigure(key=key, figure=figure, read=slo.value_ms, common=COMMON_SLO)
        return self._learn(rows, np.array(log_measured), quantity, replayed=replayed)


def _objective_of(goal: Goal) -> Read:
    """Return how to read the objective from a replay; None for users and goodput, which have closed forms only."""
    if goal.objective in (Objective.USERS, Objective.GOODPUT):
        return None
    if goal.objective is Objective.TPOT:
        return lambda predicted: predicted.tpot_ms["mean"]
    return lambda predicted: predicted.output_tok_s
