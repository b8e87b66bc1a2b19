"""The fidelity ladder in the tuner: slices of the model are tried first, and the few that deserve it run in full.

The configuration that promises most is booted as a slice before it is booted whole. If it still promises most after
what the slice showed, it is promoted; otherwise the next leader is tried. A slice costs a minute, a launch many.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprobe.errors import InputError
from hwprobe.files import decode_json, encode_json, read_bytes
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.estimate import Context, replay_workload
from models.layout import Array, table_of
from models.memory import Memory
from models.workload import Slo
from tuner.candidates import PHYSICS, Candidates, candidates_of, knob_features, log_figure, slopes
from tuner.choices import Objective
from tuner.engines.live import LiveEngine
from tuner.engines.seam import Engine, LaunchFailed, Measurement, Verdict
from tuner.engines.simulated import SimulatedEngine
from tuner.engines.world_memory import bounded
from tuner.memory_offset import chance_it_holds, evidence
from tuner.record import Outcome, TrialRecord, best_of
from tuner.server.failure import Policy, policy_of
from tuner.slices import override_text
from tuner.store import cut_torn_line
from tuner.tuning_space import TuningSpace
from tuner.two_fidelities import Rows, Told, regress
from tuner.world import dummy_weights

SLICE_LAYERS = 8
# Slices that may be tried before the first promotion, and before each one after it.
MOST_SLICES_FIRST, MOST_SLICES = 8, 3
# A share carried over below which slices say nothing of the whole: no more are tried.
LEAST_CARRY = 0.3
# Rows looked at; as in the sampler, leaders replayed, the chance of holding, and an improvement nobody could measure.
MOST_ROWS = 600
REPLAYED = 6
LEAST_CHANCE = 0.85
LEAST_IMPROVEMENT = 0.001
ROUNDS = 2
# Trials of slices are numbered from here in their engine, apart from the run's own.
FIRST_NUMBER = 100_000
SLICED = "slice"
WHY_NONE = "no launch is expected to improve on the best by more than measurements scatter"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRecord:
    """One slice that was tried: when (after so many records of the run), what, and what it showed.

    `figures` are natural logarithms by metric; none where the slice did not run. `unfit` says that the configuration,
    not the moment, was at fault.
    """

    after: int
    params: dict[str, Any]
    config: ServerConfig
    figures: dict[str, float] = field(default_factory=dict)
    unfit: bool = False
    reason: str = ""
    spent_s: float = 0.0


def slice_for(whole: ModelArchitecture, layers: int = SLICE_LAYERS) -> ModelArchitecture:
    """Return the slice that stands for a model. Raises InputError for a model too small to have one."""
    depth = max(layers, whole.dense_layers + 1)
    if depth >= whole.num_hidden_layers:
        raise InputError(f"--fidelity slice: {whole.name} has {whole.num_hidden_layers} layers, too few to cut it")
    return whole.sliced(depth)


def sliced_engine(engine: Engine, arch: ModelArchitecture, trials: Path) -> Engine:
    """Return the engine that launches slices: the same machine and locks, the model cut to `arch`."""
    if isinstance(engine, SimulatedEngine):
        return replace(engine, belief=replace(engine.belief, arch=arch))
    if isinstance(engine, LiveEngine):
        return replace(engine, context=replace(engine.context, arch=arch), trials=trials)
    raise InputError(f"--fidelity slice: the {engine.name} engine cannot boot a slice")


class SliceFile:
    """The evidence of slices: one fsynced line each, a torn last line cut off on opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        cut_torn_line(path)
        lines = read_bytes(path, "slice records").split(b"\n")[:-1] if path.exists() else []
        self.records = [decode_json(line, SliceRecord, f"{path}, line {n}") for n, line in enumerate(lines, 1)]

    def append(self, record: SliceRecord) -> None:
        """Add a record: on disk before this returns."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(encode_json(record, indent=0) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.records.append(record)


@dataclass(slots=True)
class Screen:
    """Decides what is launched in full; `engine` launches slices of `arch`."""

    space: TuningSpace
    arch: ModelArchitecture
    objective: Objective
    slos: tuple[Slo, ...]
    engine: Engine
    file: SliceFile
    shown: Callable[[str], None] = lambda text: None
    carry: float = math.nan
    _gaps: dict[tuple[ServerConfig, bool], float] = field(default_factory=dict)

    @property
    def spent_s(self) -> float:
        """Engine time that slices took."""
        return sum(record.spent_s for record in self.file.records)

    @property
    def metric(self) -> str:
        return "output_tok_s" if self.objective is Objective.OUTPUT_TOK_S else "tpot"

    @property
    def _sign(self) -> float:
        return 1.0 if self.metric == "output_tok_s" else -1.0

    @property
    def _context(self) -> Context:
        """What is believed of slices, whose weights are made up."""
        return dummy_weights(replace(self.space.context, arch=self.arch))

    def propose(self, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
        """Return what deserves a launch next, trying slices on the way; None when nothing is worth one."""
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
        belief = self._sign * log_figure(rows.steady(np.zeros(len(PHYSICS))), self.metric)[left]
        leading = np.argsort(-belief, kind="stable")[:MOST_ROWS]
        left, holds = left[leading], holds[leading]
        asked = [rows.configs[i] for i in left]
        told = self._learn(asked, self.metric, records)
        self.carry = told.carry
        for slo in self.slos:
            limit = self._learn(asked, str(slo.metric), records, f"slo {slo}")
            holds = holds * _below((math.log(slo.limit_ms) - limit.mean) / limit.deviation)
        best = best_of(records)
        floor = best.objective if best else -math.inf
        value = _improvement(self._sign * told.mean, told.deviation, floor) * holds
        leaders = np.argsort(-value, kind="stable")[:REPLAYED]
        gaps = np.array([self._gap(asked[i], sliced=False) for i in leaders])
        exact = _improvement(self._sign * (told.mean[leaders] + gaps), told.deviation[leaders], floor) * holds[leaders]
        order = np.argsort(-exact, kind="stable")
        first = [(int(left[leaders[i]]), float(exact[i])) for i in order]
        rest = np.argsort(-value, kind="stable")[REPLAYED:]
        return first + [(int(left[i]), float(value[i])) for i in rest]

    def _learn(
        self, asked: Sequence[ServerConfig], metric: str, records: Sequence[TrialRecord], constraint: str = ""
    ) -> Told:
        """Regress what was measured, on slices and in full, and say what it means for the asked in full."""
        full = [record for record in records if record.outcome is Outcome.MEASURED]
        part = [record for record in self.file.records if (constraint or metric) in record.figures]
        configs = [*(r.config for r in full), *(r.config for r in part), *asked]
        _, knobs = knob_features(tuple(configs))
        place: dict[ServerConfig, int] = {}
        ids = np.array([place.setdefault(config, len(place)) for config in configs])
        cuts = (0, len(full), len(full) + len(part), len(configs))
        values = [
            np.array([self._value(r, constraint) for r in full]),
            np.array([r.figures[constraint or metric] for r in part]),
        ]
        departure = np.zeros(len(PHYSICS))
        for _ in range(ROUNDS if full or part else 1):
            groups = []
            for low, high, sliced in ((*cuts[0:2], False), (*cuts[1:3], True), (*cuts[2:4], False)):
                chosen, gap = configs[low:high], np.zeros(high - low)
                if not chosen:
                    base, by = np.zeros(0), np.zeros((0, len(PHYSICS)))
                else:
                    base, by = slopes(self._rows(chosen, sliced), departure, metric)
                if high < len(configs) and not constraint:
                    gap = np.array([self._gap(config, sliced=sliced) for config in chosen])
                groups.append(Rows(base + gap, by, knobs[low:high], ids[low:high], sliced))
            told = regress(list(zip(groups[:2], values, strict=True)), groups[2], departure)
            departure = np.clip(told.departure, -3.0, 3.0)
        return told

    def _value(self, record: TrialRecord, constraint: str) -> float:
        if not constraint:
            return self._sign * record.objective
        slo = next(slo for slo in self.slos if f"slo {slo}" == constraint)
        return record.constraints[constraint] + math.log(slo.limit_ms)

    def _rows(self, configs: Sequence[ServerConfig], sliced: bool) -> Candidates:
        space = replace(self.space, context=self._context) if sliced else self.space
        return Candidates(params=(), configs=tuple(configs), memory=self._memory(configs, sliced), space=space)

    def _memory(self, configs: Sequence[ServerConfig], sliced: bool) -> Memory:
        """Return the ledgers; a slice is started with no more KV cache than the whole model has."""
        table = table_of(list(configs))
        whole = self.space.context.memory(table)
        return bounded(self._context.memory(table), whole.kv_tokens_per_rank) if sliced else whole

    def _gap(self, config: ServerConfig, *, sliced: bool) -> float:
        """Return the log of replay over closed form under the belief: what the closed form misses."""
        if (config, sliced) not in self._gaps:
            context = self._context if sliced else self.space.context
            rows = self._rows([config], sliced)
            played = replay_workload(context, config, self.space.workload, rows.memory)
            figure = played.output_tok_s if self.metric == "output_tok_s" else float(played.tpot_s.mean()) * 1e3
            closed = float(log_figure(rows.steady(np.zeros(len(PHYSICS))), self.metric)[0])
            self._gaps[config, sliced] = math.log(max(figure, 1e-9)) - closed
        return self._gaps[config, sliced]

    def _try(self, params: dict[str, Any], config: ServerConfig, after: int) -> None:
        """Boot the slice of a configuration, measure the asked load, and keep what it showed."""
        blank = SliceRecord(after=after, params=dict(params), config=config)
        typed = config.with_flags(
            load_format="dummy",
            max_total_tokens=int(self._memory([config], False).kv_tokens_per_rank[0]),
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
        limits = {f"slo {slo}": slo.excess(measured) + math.log(slo.limit_ms) for slo in self.slos}
        return found | limits


def _said(record: SliceRecord, metric: str) -> str:
    if metric not in record.figures:
        return record.reason or "no usable measurement"
    figure = math.exp(record.figures[metric])
    return f"{figure:,.0f} tok/s" if metric == "output_tok_s" else f"TPOT {figure:.2f} ms"


def _improvement(mean: Array, deviation: Array, floor: float) -> Array:
    """Expected improvement over `floor` in log units; the optimistic mean when nothing is measured yet."""
    if not math.isfinite(floor):
        return np.exp(mean - float(mean.max()))
    z = (mean - floor) / deviation
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (density + z * _below(z)), 1e-300)


def _below(z: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.ravel(z)])
