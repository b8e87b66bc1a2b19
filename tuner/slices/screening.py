"""The fidelity ladder in the tuner: slices of the model are tried first, and the few that deserve it run in full.

The most promising configuration is launched as a slice before it is launched whole. If it still leads after the slice
was measured, it is promoted; otherwise the next leader is tried. A slice costs a minute, a launch many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import bounded
from models.layout import table_of
from models.records.slice_fit import dummy_weights
from models.serving.estimate import Prediction, prediction_of, replay_workload
from tuner.choices import Objective
from tuner.evidence.trial import TrialRecord
from tuner.seam import Engine, LaunchFailed, Measurement, Verdict
from tuner.search.configurations import PHYSICS, Candidates
from tuner.search.gaussian_process import TrainingSet
from tuner.search.guide import LEAST_IMPROVEMENT, Guide, LearnedFigure
from tuner.search.objective import Goal
from tuner.search.space import TuningSpace
from tuner.server.failure import Policy, policy_of
from tuner.slices.launch import override_text
from tuner.slices.records import MOST_SLICES, MOST_SLICES_FIRST, SAMPLER, SLICED, SliceFile, SliceRecord

# Below this carried-over share slices no longer predict the whole model: no more are tried.
LEAST_CARRY = 0.3
# Trials of slices are numbered from here in their engine, apart from the run's own.
FIRST_NUMBER = 100_000
# Launches that slices choose before one that the sampler chooses without them.
IN_A_ROW = 2


class SliceScreening:
    """Decides which configurations are launched in full: the guide of whole models, which also learns from slices.

    `engine` launches slices of `arch`, the model cut to a few layers.
    """

    def __init__(
        self, space: TuningSpace, arch: ModelArchitecture, *, goal: Goal, engine: Engine, file: SliceFile
    ) -> None:
        self._space, self._goal, self._engine, self.file = space, goal, engine, file
        self._arch = arch
        self._guide = Guide(space, goal, slices=self._training)
        self._observed = 0
        self._replays: dict[ServerConfig, Prediction] = {}
        self.shown: Callable[[str], None] = lambda text: None

    @property
    def spent_s(self) -> float:
        """Engine time that slices took."""
        return sum(record.spent_s for record in self.file.records)

    @property
    def metric(self) -> str:
        """The figures of a slice's point."""
        return "tpot" if self._goal.objective is Objective.TPOT else "output_tok_s"

    def propose(self, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
        """Return the next configuration to launch, trying slices on the way.

        None if no configuration is worth a launch, and at every third launch, which the sampler chooses without slices:
        slices may mislead.
        """
        for record in records[self._observed :]:
            if record.repeats is None:
                self._guide.observe(record)
        self._observed = len(records)
        sliced = sum(record.launched and record.source == SLICED for record in records)
        others = sum(record.launched and record.source == SAMPLER for record in records)
        if sliced >= IN_A_ROW * (others + 1):
            return None
        while True:
            leaders = self._guide.leaders(unfit={record.config for record in self.file.records if record.unfit})
            if not leaders or leaders[0].gain < LEAST_IMPROVEMENT:
                return None
            tried = {record.config for record in self.file.records}
            first = leaders[0]
            if first.config in tried or self._guide.carry < LEAST_CARRY:
                return dict(first.params)
            if sum(record.after == len(records) for record in self.file.records) >= self._most_slices(records):
                launched_leaders = [leader for leader in leaders if leader.config in tried]
                return dict((launched_leaders or leaders)[0].params)
            self._try(first.params, first.config, len(records))

    def _most_slices(self, records: Sequence[TrialRecord]) -> int:
        promoted = any(record.source == SLICED for record in records)
        return MOST_SLICES if promoted else MOST_SLICES_FIRST

    def _training(self, quantity: LearnedFigure) -> TrainingSet | None:
        """Return the slices' measurements of a quantity, less the gap between its closed form and the replay."""
        shown = [record for record in self.file.records if quantity.key in record.figures]
        if not shown:
            return None
        rows = self._rows([(record.params, record.config) for record in shown])
        measured = np.array([record.figures[quantity.key] for record in shown])
        closed = quantity.figure(rows, np.zeros(len(PHYSICS)))
        played = [1.0 if quantity.read is None else quantity.read(self._replay(record.config)) for record in shown]
        missed = np.zeros(len(shown)) if quantity.read is None else np.log(np.maximum(played, 1e-9)) - closed
        return TrainingSet(rows=rows, log_measured=measured - missed, sliced=True)

    def _rows(self, pairs: Sequence[tuple[dict[str, Any], ServerConfig]]) -> Candidates:
        """Return rows of slices, which are started with no more KV cache than the whole has."""
        table = table_of([config for _, config in pairs])
        belief = dummy_weights(replace(self._space.context, arch=self._arch))
        return Candidates(
            params=tuple(params for params, _ in pairs),
            configs=tuple(config for _, config in pairs),
            table=table,
            memory=bounded(belief.memory(table), self._space.context.memory(table).kv_tokens_per_rank),
            space=replace(self._space, context=belief),
        )

    def _replay(self, config: ServerConfig) -> Prediction:
        if config not in self._replays:
            rows = self._rows([({}, config)])
            belief, workload = rows.space.context, self._space.workload
            played = replay_workload(belief, config, workload, rows.memory)
            self._replays[config] = prediction_of(belief, config, workload, filled=rows.memory, played=played)
        return self._replays[config]

    def _try(self, params: dict[str, Any], config: ServerConfig, after: int) -> None:
        """Boot the slice of a configuration, measure the asked load, and keep its figures."""
        blank = SliceRecord(after=after, params=dict(params), config=config)
        typed = config.with_flags(
            load_format="dummy",
            max_total_tokens=int(self._space.context.memory(table_of([config])).kv_tokens_per_rank[0]),
            json_model_override_args=override_text(self._arch),
        )
        try:
            server = self._engine.launch(typed, FIRST_NUMBER + len(self.file.records))
            try:
                measured = server.measure(self._space.workload)
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
        logs = {"output_tok_s": math.log(measured.output_tok_s)}
        if measured.tpot_ms["mean"] > 0.0:
            logs["tpot"] = math.log(measured.tpot_ms["mean"])
        limits = {f"slo {slo}": slo.excess(measured) + math.log(slo.limit_ms) for slo in self._goal.constraining}
        return logs | limits


def _said(record: SliceRecord, metric: str) -> str:
    if metric not in record.figures:
        return record.reason or "no usable measurement"
    figure = math.exp(record.figures[metric])
    return f"{figure:,.0f} tok/s" if metric == "output_tok_s" else f"TPOT {figure:.2f} ms"
