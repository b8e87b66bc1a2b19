"""The tuning loop: propose, rule out what cannot win, launch, climb the ladder, record, repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hwprobe.errors import SgtuneError
from hwprobe.files import encode_json
from models.config import ServerConfig
from models.estimate import Context, Prediction, predict
from models.layout import table_of
from models.workload import Slo, Workload, missed
from planner.launch import launch_spec
from planner.rules import Question, first_error
from planner.search import SAFE_FREE_GIB
from tuner.choices import Objective
from tuner.confirm import to_confirm
from tuner.engines.seam import Engine, LaunchFailed, Measurement, Server, Verdict
from tuner.fidelity import SLICED, WHY_NONE, Screen
from tuner.memory_offset import evidence, known_missing_gib
from tuner.record import Outcome, TrialRecord, best_of
from tuner.server.failure import Policy, policy_of
from tuner.store import RunFolder
from tuner.study import StudyIndex
from tuner.tuning_space import TuningSpace

# Proposals in a row that may be ruled out before the space counts as exhausted.
MOST_RULED_OUT = 150
# Two configurations of one family predicted closer than this differ by less than measurements do.
INDISTINCT = 0.01
# Further launches of a configuration that failed through no fault of its own.
RETRIES = 1
SAMPLER = "sampler"


class OperatorNeeded(SgtuneError):
    """Nothing the tuner could launch would fare better: the run stops and can be resumed."""

    def __init__(self, failure: LaunchFailed, number: int) -> None:
        super().__init__(
            f"trial {number} stopped the run ({failure.kind}): {failure.evidence}\n"
            "see to it, then go on with --resume: nothing measured is lost"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be tuned, apart from how and where."""

    context: Context
    workload: Workload
    slos: tuple[Slo, ...]
    objective: Objective
    space: TuningSpace
    seeds: tuple[tuple[str, dict[str, Any]], ...]
    trials: int
    budget_s: float = math.inf
    confirm: int = 0

    def score(self, output_tok_s: float, tpot_mean_ms: float) -> float:
        """Return the objective as a number to maximise (logarithmic: ratios matter)."""
        if self.objective is Objective.OUTPUT_TOK_S:
            return math.log(output_tok_s)
        return -math.log(max(tpot_mean_ms, 1e-6))  # a single output token has no TPOT

    def ladder(self) -> list[int]:
        """Return the concurrencies to measure, the asked one last."""
        asked = self.workload.concurrency
        return sorted({max(1, asked // 8), max(1, asked // 2), asked})


class Reporter(Protocol):
    """Hears what happens, to show it."""

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None: ...

    def point(self, number: int, measured: Measurement) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass(slots=True)
class Loop:
    """One run of the tuner; `records` holds the trials of earlier sessions of the same run too."""

    task: Task
    engine: Engine
    folder: RunFolder
    index: StudyIndex
    reporter: Reporter
    records: list[TrialRecord] = field(default_factory=list)
    stop_reason: str = ""
    screen: Screen | None = None

    @property
    def launches(self) -> int:
        """Launches of the search; confirmations are not counted."""
        return sum(record.launched and record.repeats is None for record in self.records)

    @property
    def spent_s(self) -> float:
        slices_s = self.screen.spent_s if self.screen else 0.0
        return slices_s + sum(record.spent_s for record in self.records)

    @property
    def best(self) -> TrialRecord | None:
        """The best feasible trial so far."""
        return best_of(self.records)

    def run(self) -> None:
        """Go on until launches, budget or proposals are used up, then launch the best again.

        Every record is on disk before the next begins.
        """
        for source, params in self._proposals():
            self._keep(self._try(source, params))
        self._confirm()

    def _keep(self, record: TrialRecord) -> None:
        self.folder.append(record)
        if record.launched:
            self._write_trial(record)
        self.index.tell(record)
        self.records.append(record)
        self.reporter.finished(record, self.best)

    def _confirm(self) -> None:
        """Launch the best and the baseline once more: one measurement may be lucky, and machines drift."""
        for first in to_confirm(self.records, self.task.confirm):
            if self.spent_s >= self.task.budget_s:
                self.stop_reason += "; no budget was left to launch the best again"
                return
            predicted = predict(self.task.context, first.config, self.task.workload)
            blank = self._blank(f"again {first.number}", first.params, first.config)
            draft = self._predicted(replace(blank, repeats=first.number), predicted)
            self.reporter.launching(draft.number, draft.source, first.config, predicted)
            self._keep(self._launch(draft))

    def _reserved_s(self) -> float:
        """Return the part of the budget that launching the best again will take."""
        if not self.task.confirm or not self.launches:
            return 0.0
        return (self.task.confirm + 1) * self.spent_s / self.launches

    def _write_trial(self, record: TrialRecord) -> None:
        """Put what a person wants to look at into the trial's own folder."""
        spec = launch_spec(record.config, self.task.context.version)
        self.folder.write_trial(record.number, "command.sh", spec.shell_line() + "\n", executable=True)
        self.folder.write_trial(record.number, "result.json", encode_json(record) + "\n")
        points = "".join(encode_json(point, indent=0) + "\n" for point in record.points)
        self.folder.write_trial(record.number, "points.jsonl", points)

    def _proposals(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield seeds first, then the sampler's proposals that were not tried before."""
        ruled_out = 0
        while self.launches < self.task.trials:
            if self.spent_s + self._reserved_s() >= self.task.budget_s:
                self.stop_reason = "the budget is spent"
                return
            number = sum(record.repeats is None for record in self.records)
            if number < len(self.task.seeds):
                yield self.task.seeds[number]
                continue
            ruled_out = ruled_out + 1 if not self.records[-1].launched else 0
            if ruled_out >= MOST_RULED_OUT:
                self.stop_reason = "no proposal is left that could beat the best measured and is worth a launch"
                return
            params = self.screen.propose(self.records) if self.screen else self.index.propose()
            if params is None:
                self.stop_reason = WHY_NONE if self.screen else self.index.why_none
                return
            yield SLICED if self.screen else SAMPLER, params
        self.stop_reason = f"{self.task.trials} launches done"

    def _try(self, source: str, params: dict[str, Any]) -> TrialRecord:
        """Carry one proposal as far as it goes: ruled out, infeasible, or measured."""
        config = self.task.space.config(params)
        blank = self._blank(source, params, config)
        reason = self._cannot_run(config)
        if reason is not None:
            return replace(blank, outcome=Outcome.RULED_OUT, reason=reason)
        predicted = predict(self.task.context, config, self.task.workload)
        draft = self._predicted(blank, predicted)
        unjudged = source == SLICED or (source == SAMPLER and (self.index.guided or self.index.exhaustive))
        reason = None if unjudged else self._cannot_win(config, predicted)
        if reason is not None:
            return replace(draft, outcome=Outcome.RULED_OUT, reason=reason)
        self.reporter.launching(draft.number, source, config, predicted)
        return self._launch(draft)

    def _blank(self, source: str, params: dict[str, Any], config: ServerConfig) -> TrialRecord:
        """A record of a configuration nothing is known of: as bad as the worst seen, memory violated."""
        worst = min((record.objective for record in self.records), default=0.0)
        return TrialRecord(
            number=len(self.records),
            source=source,
            params=params,
            config=config,
            outcome=Outcome.RULED_OUT,
            predicted={},
            objective=worst,
            constraints={"memory": 1.0, **{_key(slo): 0.0 for slo in self.task.slos}},
        )

    def _predicted(self, record: TrialRecord, predicted: Prediction) -> TrialRecord:
        """Complete a record with what the model says: what samplers learn of a trial that was not measured."""
        figures = {
            "output_tok_s": predicted.output_tok_s,
            "tpot_mean_ms": predicted.tpot_ms["mean"],
            "ttft_mean_ms": predicted.ttft_ms["mean"],
            "output_tok_s_low": predicted.band["output_tok_s"][0],
            "output_tok_s_high": predicted.band["output_tok_s"][1],
        }
        misses = {_key(slo): slo.excess(predicted) for slo in self.task.slos}
        return replace(
            record,
            predicted=figures,
            objective=self.task.score(predicted.output_tok_s, predicted.tpot_ms["mean"]),
            constraints={"memory": -1.0, **misses},
        )

    def _cannot_run(self, config: ServerConfig) -> str | None:
        """Say which rule or number forbids the launch, or None."""
        context = self.task.context
        question = Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
        error = first_error(question)
        if error is not None:
            return f"{error.rule}: {error.message}"
        filled = context.memory(table_of([config]))
        if float(filled.kv_tokens_per_rank[0]) < self.task.workload.longest_request:
            return f"memory: {int(filled.kv_tokens_per_rank[0]):,} KV tokens cannot hold one request"
        if float(filled.free[0]) < SAFE_FREE_GIB:
            return f"memory: {float(filled.free[0]):.1f} GiB would be left free per GPU, {SAFE_FREE_GIB} are needed"
        missing = known_missing_gib(evidence(self.records, context))
        if float(filled.free[0]) <= missing:
            return f"memory: {float(filled.free[0]):.1f} GiB left free per GPU; a launch with {missing:.1f} ran out"
        return None

    def _cannot_win(self, config: ServerConfig, predicted: Prediction) -> str | None:
        """Say that the optimistic end of the prediction loses, or that a launch would tell nothing new."""
        twin = self._twin(config, predicted)
        if twin is not None:
            return f"nothing new: predicted within {100 * INDISTINCT:.0f} % of trial {twin.number}, same family"
        best = self.best
        if best is None or best.target is None:
            return None
        optimistic = self.task.score(predicted.band["output_tok_s"][1], predicted.band["tpot_mean_ms"][0])
        if optimistic >= best.objective:
            return None
        return f"bound: at best {100 * math.expm1(optimistic - best.objective):+.0f} % of the best measured"

    def _twin(self, config: ServerConfig, predicted: Prediction) -> TrialRecord | None:
        """Return a measured trial of the same family whose prediction could not be told apart, or None."""
        rate = predicted.output_tok_s
        for record in self.records:
            same = record.outcome is Outcome.MEASURED and record.label == config.label
            if same and abs(record.predicted["output_tok_s"] / rate - 1.0) < INDISTINCT:
                return record
        return None

    def _launch(self, draft: TrialRecord) -> TrialRecord:
        """Launch, and once more where the machine or the moment was at fault. Raises OperatorNeeded."""
        record = self._attempt(draft)
        spent = 0.0
        for _ in range(RETRIES):
            if record.outcome is not Outcome.FAILED:
                break
            spent += record.spent_s
            record = self._attempt(draft)
        return replace(record, spent_s=record.spent_s + spent)

    def _attempt(self, draft: TrialRecord) -> TrialRecord:
        """Start the server, climb the ladder, and say what came of it. The server is stopped in any case."""
        points: list[Measurement] = []
        boot_s = 0.0
        try:
            server = self.engine.launch(draft.config, draft.number)
            boot_s = server.info().boot_s
            try:
                self._climb(server, draft.number, points.append)
            finally:
                server.stop()
        except LaunchFailed as failure:
            policy = policy_of(failure.kind)
            if policy is Policy.STOP:
                raise OperatorNeeded(failure, draft.number) from failure
            ours = policy is Policy.CONFIGURATION
            return replace(
                draft,
                outcome=Outcome.INFEASIBLE if ours else Outcome.FAILED,
                failure=failure.kind,
                reason=failure.evidence,
                points=tuple(points),
                constraints={**draft.constraints, "memory": 1.0 if ours else 0.0},
                boot_s=boot_s,
                spent_s=failure.seconds + sum(point.duration_s for point in points),
            )
        return self._measured(draft, points, boot_s)

    def _climb(self, server: Server, number: int, keep: Callable[[Measurement], None]) -> None:
        """Measure the ladder; a point nobody may use is measured once more on the same server."""
        for concurrency in self.task.ladder():
            workload = replace(self.task.workload, concurrency=concurrency)
            measured = server.measure(workload)
            if measured.verdict is not Verdict.OK:
                measured = server.measure(workload)
            keep(measured)
            self.reporter.point(number, measured)

    def _measured(self, draft: TrialRecord, points: Sequence[Measurement], boot_s: float) -> TrialRecord:
        target = points[-1]
        spent_s = boot_s + sum(point.duration_s for point in points)
        if target.verdict is not Verdict.OK:
            reason = f"the point at {target.concurrency} clients is {target.verdict}: {target.why}"
            return replace(
                draft, outcome=Outcome.FAILED, reason=reason, points=tuple(points), boot_s=boot_s, spent_s=spent_s
            )
        violated = {_key(slo): slo.excess(target) for slo in self.task.slos}
        return replace(
            draft,
            outcome=Outcome.MEASURED,
            points=tuple(points),
            objective=self.task.score(target.output_tok_s, target.tpot_ms["mean"]),
            constraints={"memory": -1.0, **violated},
            misses=missed(self.task.slos, target),
            boot_s=boot_s,
            spent_s=spent_s,
        )

    def close(self) -> None:
        """Let go of the machine and the run folder; the records stay."""
        self.engine.close()
        self.folder.release()


def _key(slo: Slo) -> str:
    return f"slo {slo}"
