"""The fidelity ladder in the tuner: slices of the model are tried first, and the few that deserve it run in full.

The most promising configuration is launched as a slice before it is launched whole. If it still promises most after
what the slice showed, it is promoted; otherwise the next leader is tried. A slice costs a minute, a launch many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import bounded
from models.layout import Array, ConfigTable, table_of
from models.records.slice_fit import dummy_weights
from models.serving.closed_form import ClosedForm
from models.serving.estimate import Context, predict_many, replay_workload
from models.workload import Slo
from tuner.choices import Objective
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.seam import Engine, LaunchFailed, Measurement, Verdict
from tuner.search.closed_form import Figure, of_goal, of_point
from tuner.search.configurations import PHYSICS, Candidates, candidates_of, knob_features, slopes
from tuner.search.expected_improvement import chance_below, expected_improvement, nothing_to_beat
from tuner.search.memory_belief import chance_it_holds, evidence
from tuner.search.objective import Goal
from tuner.search.space import TuningSpace
from tuner.server.failure import Policy, policy_of
from tuner.slices.launch import override_text
from tuner.slices.records import MOST_SLICES, MOST_SLICES_FIRST, SliceFile, SliceRecord
from tuner.slices.regression import Rows, WholePosterior, regress

# A share carried over below which slices say nothing of the whole: no more are tried.
LEAST_CARRY = 0.3
# Rows looked at; as in the sampler, leaders replayed, the chance of holding, and a gain within measurement noise.
MOST_ROWS = 600
REPLAYED = 6
LEAST_CHANCE = 0.85
LEAST_IMPROVEMENT = 0.001
ROUNDS = 2
# Trials of slices are numbered from here in their engine, apart from the run's own.
FIRST_NUMBER = 100_000
SLICED = "slice"
SAMPLER = "sampler"
# Launches that slices choose before one that the sampler chooses without them.
IN_A_ROW = 2
Pair = tuple[dict[str, Any], ServerConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tabled(Candidates):
    """Rows with their table made once: slopes ask for the closed form a dozen times."""

    table: ConfigTable

    def steady(self, parameter_shift_sigmas: Array) -> ClosedForm:
        return predict_many(self.departed(parameter_shift_sigmas), self.table, self.space.workload, self.memory)


@dataclass(slots=True)
class SliceScreening:
    """Decides what is launched in full; `engine` launches slices of `arch`.

    `carry` is the share of a knob's effect on slices that is found again in full launches, as learned so far.
    """

    space: TuningSpace
    arch: ModelArchitecture
    goal: Goal
    engine: Engine
    file: SliceFile
    shown: Callable[[str], None] = lambda text: None
    carry: float = math.nan
    _gaps: dict[tuple[ServerConfig, bool], float] = field(default_factory=dict)
    _belief: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def spent_s(self) -> float:
        """Engine time that slices took."""
        return sum(record.spent_s for record in self.file.records)

    @property
    def metric(self) -> str:
        """What of a slice's point is looked at."""
        return "tpot" if self.goal.objective is Objective.TPOT else "output_tok_s"

    @property
    def _sign(self) -> float:
        return -1.0 if self.goal.lower_is_better else 1.0

    @property
    def _context(self) -> Context:
        """What is believed of slices, whose weights are made up."""
        return dummy_weights(replace(self.space.context, arch=self.arch))

    def propose(self, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
        """Return what deserves a launch next, trying slices on the way.

        None when nothing is worth one, and at every third launch, which belongs to the sampler that knows of no slice:
        what slices say may be wrong.
        """
        chosen = sum(record.launched and record.source == SLICED for record in records)
        others = sum(record.launched and record.source == SAMPLER for record in records)
        if chosen >= IN_A_ROW * (others + 1):
            return None
        while True:
            ranked = self._ranked(records)
            if not ranked or ranked[0][1] < LEAST_IMPROVEMENT:
                return None
            tried = {record.config for record in self.file.records}
            rows = candidates_of(self.space)
            leader = ranked[0][0]
            if rows.configs[leader] in tried or self.carry < LEAST_CARRY:
                return dict(rows.params[leader])
            if sum(record.after == len(records) for record in self.file.records) >= self._most_slices(records):
                known = [index for index, _ in ranked if rows.configs[index] in tried]
                return dict(rows.params[(known or [leader])[0]])
            self._try(rows.params[leader], rows.configs[leader], len(records))

    def _most_slices(self, records: Sequence[TrialRecord]) -> int:
        promoted = any(record.source == SLICED for record in records)
        return MOST_SLICES if promoted else MOST_SLICES_FIRST

    def _ranked(self, records: Sequence[TrialRecord]) -> list[tuple[int, float]]:
        """Return rows that were not launched, most expected feasible improvement first."""
        rows = candidates_of(self.space)
        gone = {record.config for record in records} | {r.config for r in self.file.records if r.unfit}
        left = np.array([i for i, config in enumerate(rows.configs) if config not in gone], dtype=np.intp)
        if not len(left):
            return []
        holds = chance_it_holds(rows.memory.free[left], evidence(records, self.space.context))
        safe = holds >= min(LEAST_CHANCE, float(holds.max()))
        left, holds = left[safe], holds[safe]
        belief = self._believed(rows)[left]
        leading = np.argsort(-belief, kind="stable")[:MOST_ROWS]
        left, holds = left[leading], holds[leading]
        asked: list[Pair] = [(rows.params[i], rows.configs[i]) for i in left.tolist()]
        told = self._learn(asked, of_goal(self.goal), records)
        self.carry = told.carry
        for slo in self.goal.constraining:
            limit = self._learn(asked, of_point(str(slo.metric)), records, slo)
            holds = holds * chance_below((math.log(slo.limit_ms) - limit.mean) / limit.deviation)
        best = best_of(records)
        floor = best.objective if best else -math.inf
        mean = self._sign * told.mean + np.array([self.goal.shift(config) for _, config in asked])
        value = _worth(mean, told.deviation, floor) * holds
        order = np.argsort(-value, kind="stable")
        leaders = order[:REPLAYED]
        gaps = self._sign * np.array([self._gap(asked[i], sliced=False) for i in leaders])
        exact = _worth(mean[leaders] + gaps, told.deviation[leaders], floor) * holds[leaders]
        first = [(int(left[leaders[i]]), float(exact[i])) for i in np.argsort(-exact, kind="stable")]
        return first + [(int(left[i]), float(value[i])) for i in order[REPLAYED:]]

    def _believed(self, rows: Candidates) -> Array:
        """Return the score of every row before anything is measured: asked once."""
        if not len(self._belief):
            self._belief = self._sign * of_goal(self.goal)(rows, np.zeros(len(PHYSICS))) + self._shift(rows)
        return self._belief

    def _shift(self, rows: Candidates) -> Array:
        return np.array([self.goal.shift(config) for config in rows.configs])

    def _learn(
        self, asked: Sequence[Pair], figure: Figure, records: Sequence[TrialRecord], slo: Slo | None = None
    ) -> WholePosterior:
        """Regress what was measured, on slices and in full, and say what it means for the asked in full."""
        key = self.metric if slo is None else f"slo {slo}"
        full = [record for record in records if record.outcome is TrialOutcome.MEASURED]
        part = [record for record in self.file.records if key in record.figures]
        values = (np.array([self._value(r, slo) for r in full]), np.array([r.figures[key] for r in part]))
        groups: list[tuple[list[Pair], bool]] = [
            ([(r.params, r.config) for r in full], False),
            ([(r.params, r.config) for r in part], True),
            (list(asked), False),
        ]
        tables = [self._rows(pairs, sliced) for pairs, sliced in groups]
        _, knobs = knob_features(tables)
        cuts = np.cumsum([0, *(len(pairs) for pairs, _ in groups)])
        place: dict[ServerConfig, int] = {}
        ids = np.array([place.setdefault(config, len(place)) for pairs, _ in groups for _, config in pairs])
        parameter_shift_sigmas = np.zeros(len(PHYSICS))
        for _ in range(ROUNDS if full or part else 1):
            sets = []
            for number, (pairs, sliced) in enumerate(groups):
                inside = slice(cuts[number], cuts[number + 1])
                base, by = np.zeros(0), np.zeros((0, len(PHYSICS)))
                if pairs:
                    base, by = slopes(tables[number], parameter_shift_sigmas, figure)
                if number < 2 and slo is None:
                    base = base + np.array([self._gap(pair, sliced=sliced) for pair in pairs])
                sets.append(Rows(base, by, knobs[inside], ids[inside], sliced))
            told = regress(list(zip(sets[:2], values, strict=True)), sets[2], parameter_shift_sigmas)
            parameter_shift_sigmas = np.clip(told.parameter_shift_sigmas, -3.0, 3.0)
        return told

    def _value(self, record: TrialRecord, slo: Slo | None) -> float:
        """Return what a full launch showed: the log of the objective's own figure, or of what a limit is about."""
        if slo is None:
            return self._sign * record.objective - self.goal.shift(record.config)
        return record.constraints[f"slo {slo}"] + math.log(slo.limit_ms)

    def _rows(self, pairs: Sequence[Pair], sliced: bool) -> Candidates:
        """Return rows of the whole, or of slices, which are started with no more KV cache than the whole has."""
        params, configs = tuple(p for p, _ in pairs), tuple(c for _, c in pairs)
        table, space = table_of(configs), self.space
        memory = space.context.memory(table)
        if sliced:
            space = replace(space, context=self._context)
            memory = bounded(space.context.memory(table), memory.kv_tokens_per_rank)
        return _Tabled(params=params, configs=configs, memory=memory, space=space, table=table)

    def _gap(self, pair: Pair, *, sliced: bool) -> float:
        """Return the log of replay over closed form under the belief: what the closed form misses."""
        config = pair[1]
        if (config, sliced) not in self._gaps:
            rows = self._rows([pair], sliced)
            played = replay_workload(rows.space.context, config, self.space.workload, rows.memory)
            figure = played.output_tok_s if self.metric == "output_tok_s" else float(played.tpot_s.mean()) * 1e3
            closed = float(of_point(self.metric)(rows, np.zeros(len(PHYSICS)))[0])
            self._gaps[config, sliced] = math.log(max(figure, 1e-9)) - closed
        return self._gaps[config, sliced]

    def _try(self, params: dict[str, Any], config: ServerConfig, after: int) -> None:
        """Boot the slice of a configuration, measure the asked load, and keep what it showed."""
        blank = SliceRecord(after=after, params=dict(params), config=config)
        typed = config.with_flags(
            load_format="dummy",
            max_total_tokens=int(self.space.context.memory(table_of([config])).kv_tokens_per_rank[0]),
            json_model_override_args=override_text(self.arch),
        )
        try:
            server = self.engine.launch(typed, FIRST_NUMBER + len(self.file.records))
            try:
                measured = server.measure(self.space.workload)
                spent_s = server.info().boot_s + measured.duration_s
            finally:
                server.stop()
        except LaunchFailed as failure:
            unfit = policy_of(failure.kind) is Policy.CONFIGURATION
            record = replace(blank, unfit=unfit, reason=f"{failure.kind}: {failure.evidence}", spent_s=failure.seconds)
        else:
            usable = measured.verdict is Verdict.OK
            record = replace(
                blank, figures=self._figures(measured) if usable else {}, spent_s=spent_s, reason=measured.why
            )
        self.file.append(record)
        self.shown(f"slice {len(self.file.records)} {config.label}: {_said(record, self.metric)}")

    def _figures(self, measured: Measurement) -> dict[str, float]:
        found = {"output_tok_s": math.log(measured.output_tok_s)}
        if measured.tpot_ms["mean"] > 0.0:
            found["tpot"] = math.log(measured.tpot_ms["mean"])
        limits = {f"slo {slo}": slo.excess(measured) + math.log(slo.limit_ms) for slo in self.goal.constraining}
        return found | limits


def _said(record: SliceRecord, metric: str) -> str:
    if metric not in record.figures:
        return record.reason or "no usable measurement"
    figure = math.exp(record.figures[metric])
    return f"{figure:,.0f} tok/s" if metric == "output_tok_s" else f"TPOT {figure:.2f} ms"


def _worth(mean: Array, deviation: Array, floor: float) -> Array:
    return expected_improvement(mean - floor, deviation) if math.isfinite(floor) else nothing_to_beat(mean)
