"""The tuning loop: propose, rule out what cannot win, launch, climb the ladder, record, repeat."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import to_builtins

from hwprobe.errors import SgtuneError
from hwprobe.files import encode_json
from models.config import ServerConfig
from models.serving.estimate import Context, Prediction
from models.workload import Workload
from planner.launch import launch_spec
from tuner.choices import SIMULATED, Objective
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.standings import BASELINE, to_confirm
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.run.load_ladder import LOWER_RUNGS, LoadLadder
from tuner.run.trial_builder import TrialBuilder
from tuner.seam import Engine, LaunchFailed, Measurement, Server
from tuner.search.fallback import SAFEST, LeastMemoryFallback
from tuner.search.objective import Goal
from tuner.search.optuna_study import StudyIndex
from tuner.search.prechecks import cannot_run, cannot_win, quarantined
from tuner.search.space import TuningSpace
from tuner.server.failure import Policy, policy_of
from tuner.slices.records import SAMPLER, SLICED

if TYPE_CHECKING:
    from tuner.slices.screening import SliceScreening  # needs scikit-learn

# Proposals in a row that may be ruled out before the space counts as exhausted.
MOST_RULED_OUT = 150
# Further launches of a configuration that failed through no fault of its own.
RETRIES = 1
TRIAL_FILES = ("command.sh", "result.json", "points.jsonl")


class OperatorNeeded(SgtuneError):
    """Nothing the tuner could launch would fare better: the run stops and can be resumed."""

    def __init__(self, failure: LaunchFailed, number: int) -> None:
        super().__init__(
            f"trial {number} stopped the run ({failure.kind}): {failure.evidence}\n"
            "see to it, then continue with --resume: nothing measured is lost"
        )


class AlikeFailures(SgtuneError):
    """Two launches in a row failed alike before they served anything: the next ones would, too."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(
            f"two launches in a row failed alike ({record.failure}), which no configuration mends: {record.reason}\n"
            f"see trials/{record.number}/server.log in the run folder, mend what it names, then go on with --resume: "
            "nothing measured is lost"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneTask:
    """What is to be tuned, apart from how and where."""

    context: Context
    workload: Workload
    goal: Goal
    space: TuningSpace
    seeds: tuple[tuple[str, dict[str, Any]], ...]
    trials: int
    budget_s: float = math.inf
    confirm: int = 0
    lower_rungs: int = LOWER_RUNGS
    simulated: bool = False

    @property
    def drafts(self) -> TrialBuilder:
        """What makes this task's records."""
        return TrialBuilder(self.goal, self.context, self.workload, self.space, self.simulated)


class Reporter(Protocol):
    """Hears what happens, to show it."""

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None: ...

    def point(self, number: int, measured: Measurement) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass(slots=True)
class Loop:
    """One run of the tuner; `records` holds the trials of earlier sessions of the same run too."""

    task: TuneTask
    engine: Engine
    folder: RunFolder
    index: StudyIndex
    reporter: Reporter
    records: list[TrialRecord] = field(default_factory=list)
    stop_reason: str = ""
    screen: SliceScreening | None = None

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
        self.complete_folders()
        before: TrialRecord | None = None
        for source, params in self._proposals():
            self._keep(self._try(source, params))
            if self.records[-1].launched:
                _stop_where_alike(before, self.records[-1])
                before = self.records[-1]
        self._confirm()

    def _keep(self, record: TrialRecord) -> None:
        record = self.folder.append(record)
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
            blank = self.task.drafts.blank(f"again {first.number}", first.params, first.config, self.records)
            draft, predicted = self.task.drafts.predict(replace(blank, repeats=first.number))
            self.reporter.launching(draft.number, draft.source, first.config, predicted)
            self._keep(self._launch(draft))

    def _reserved_s(self) -> float:
        """Return the part of the budget that launching the best again will take."""
        if not self.task.confirm or not self.launches:
            return 0.0
        return (self.task.confirm + 1) * self.spent_s / self.launches

    def complete_folders(self) -> None:
        """Write again what trials of an earlier session lack: a kill or a full disk came between."""
        for record in self.records:
            if record.launched and self.folder.lacks(record.number, TRIAL_FILES):
                self._write_trial(record)

    def _write_trial(self, record: TrialRecord) -> None:
        """Put what a person wants to look at into the trial's own folder."""
        line = launch_spec(record.config, self.task.context.version).shell_line()
        head = f"# {SIMULATED}: tried in a world, not on a machine\n" if record.simulated else ""
        self.folder.write_trial(record.number, "command.sh", f"{head}{line}\n", executable=True)
        self.folder.write_trial(record.number, "result.json", encode_json(record) + "\n")
        stamp = {"simulated": True} if record.simulated else {}
        points = "".join(encode_json({**to_builtins(p), **stamp}, indent=0) + "\n" for p in record.points)
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
            fallback = LeastMemoryFallback(self.task.space, self.records, patience=1 if self.index.guided else 0)
            if fallback.diagnosis:
                self.stop_reason = fallback.diagnosis
                return
            if fallback.params is not None:
                yield SAFEST, fallback.params
                continue
            if self.screen and (params := self.screen.propose(self.records)) is not None:
                yield SLICED, params
                continue
            params = self.index.propose()
            if params is None:
                self.stop_reason = self.index.why_none
                return
            yield SAMPLER, params
        self.stop_reason = f"{self.task.trials} launches done"

    def _try(self, source: str, params: dict[str, Any]) -> TrialRecord:
        """Carry one proposal as far as it goes: ruled out, infeasible, or measured."""
        config = self.task.space.config(params)
        blank = self.task.drafts.blank(source, params, config, self.records)
        reason = cannot_run(config, self.task.context, self.task.workload, self.records)
        reason = reason or quarantined(config, self.records)
        if reason is not None:
            return replace(blank, outcome=TrialOutcome.RULED_OUT, reason=reason)
        draft, predicted = self.task.drafts.predict(blank)
        unjudged = source in (SAFEST, SLICED) or (source == SAMPLER and (self.index.guided or self.index.exhaustive))
        reason = None if unjudged else cannot_win(self.task.goal, config, params, predicted, self.records)
        if reason is not None:
            return replace(draft, outcome=TrialOutcome.RULED_OUT, reason=reason)
        self.reporter.launching(draft.number, source, config, predicted)
        return self._launch(draft)

    def _launch(self, draft: TrialRecord) -> TrialRecord:
        """Launch, and once more where the machine or the moment was at fault. Raises OperatorNeeded."""
        record = self._attempt(draft)
        spent = 0.0
        for _ in range(RETRIES):
            if record.outcome is not TrialOutcome.FAILED:
                break
            spent += record.spent_s
            record = self._attempt(draft)
        return replace(record, spent_s=record.spent_s + spent)

    def _attempt(self, draft: TrialRecord) -> TrialRecord:
        """Start the server, climb the ladder, and say what came of it. The server is stopped in any case."""
        points: list[Measurement] = []
        boot_s, stopped = 0.0, ""
        try:
            server = self.engine.launch(draft.config, draft.number)
            boot_s = server.info().boot_s
            try:
                stopped = self._climb(server, draft, points)
            finally:
                server.stop()
        except LaunchFailed as failure:
            policy = policy_of(failure.kind)
            if policy is Policy.STOP:
                raise OperatorNeeded(failure, draft.number) from failure
            ours = policy is Policy.CONFIGURATION
            return replace(
                draft,
                outcome=TrialOutcome.INFEASIBLE if ours else TrialOutcome.FAILED,
                failure=failure.kind,
                reason=failure.evidence,
                points=tuple(points),
                constraints={**draft.constraints, "memory": 1.0 if ours else 0.0},
                boot_s=boot_s,
                spent_s=failure.seconds + sum(point.duration_s for point in points),
            )
        return self.task.drafts.measured(draft, points, boot_s, stopped)

    def _climb(self, server: Server, draft: TrialRecord, points: list[Measurement]) -> str:
        """Measure the ladder into `points`; return why not all of it, if so."""

        def keep(point: Measurement) -> None:
            points.append(point)
            self.reporter.point(draft.number, point)

        in_full = draft.source == BASELINE or draft.repeats is not None or self.index.exhaustive
        best = None if in_full else self.best
        climb = LoadLadder(
            goal=self.task.goal,
            workload=self.task.workload,
            to_beat=best.objective if best else None,
            lower_rungs=self.task.lower_rungs,
        )
        users = draft.predicted.get(Objective.USERS, 1.0)
        return climb.up(server, draft.config, self.task.context, users, keep)

    def close(self) -> None:
        """Let go of the machine and the run folder; the records stay."""
        self.engine.close()
        self.folder.release()


def _stop_where_alike(before: TrialRecord | None, record: TrialRecord) -> None:
    """Raise AlikeFailures when both failed at their start, through no fault of their own, with the same words."""
    if before is None or record.points or before.points:
        return
    alike = record.outcome is before.outcome is TrialOutcome.FAILED and record.failure is before.failure is not None
    if alike and _words(record.reason) == _words(before.reason):
        raise AlikeFailures(record)


def _words(text: str) -> str:
    """Return a message without what differs between two launches: times, ports, process ids."""
    return re.sub(r"\d+", "#", text)
