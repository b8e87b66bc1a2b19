"""The tuning loop: propose, rule out what cannot win, launch, climb the ladder, record, repeat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from models.config import ServerConfig
from models.serving.estimate import Context, Prediction
from models.workload import Workload
from tuner.choices import Objective
from tuner.evidence.flight import Flight, FlightLog
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.standings import BASELINE, to_confirm
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of
from tuner.run.airspace import Airspace
from tuner.run.load_ladder import LOWER_RUNGS, LoadLadder
from tuner.run.stop import OperatorNeeded, stop_where_alike
from tuner.run.trial_builder import TrialBuilder
from tuner.run.trial_files import TRIAL_FILES, write_trial
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneTask:
    """The question of a run, apart from its engine and folder; `model_path` is what launches serve."""

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
    model_path: str = ""

    @property
    def drafts(self) -> TrialBuilder:
        """The builder of this task's records."""
        return TrialBuilder(self.goal, self.context, self.workload, self.space, self.simulated)


@dataclass(frozen=True, slots=True)
class _Proposal:
    """Parameters to launch, and who chose them; `again` is the trial whose configuration they repeat."""

    source: str
    params: dict[str, Any]
    again: TrialRecord | None = None


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
    log: FlightLog
    airspace: Airspace
    records: list[TrialRecord] = field(default_factory=list)
    in_flight: list[TrialRecord] = field(default_factory=list)
    stop_reason: str = ""
    screen: SliceScreening | None = None
    _landed: TrialRecord | None = None

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

        Every record is on disk before anything is proposed that knows of it.
        """
        self.complete_folders()
        for flight in self.log.in_the_air(self.records):
            self._take_off(flight, self._draft_of(flight))
        while self._fill(self._next_proposal):
            self._land()
        again = [self._again(first) for first in to_confirm(self.records, self.task.confirm)]
        while self._fill(lambda: again.pop(0) if again and self._may_confirm() else None):
            self._land()

    def _fill(self, following: Callable[[], _Proposal | None]) -> bool:
        """Launch until as much is in flight as may be, or nothing follows; say whether anything is in flight."""
        while len(self.in_flight) < self.airspace.slots and (proposal := following()) is not None:
            self._try(proposal)
        return bool(self.in_flight)

    def _land(self) -> None:
        """Wait for the next launch that ends, and keep its record."""
        record = self.airspace.next()
        self.in_flight = [draft for draft in self.in_flight if draft.number != record.number]
        self._keep(record)
        before, self._landed = self._landed, record
        if record.repeats is None:
            stop_where_alike(before, record)

    def _keep(self, record: TrialRecord) -> None:
        record = self.folder.append(record)
        if record.launched:
            write_trial(self.folder, record, self.task.context.version, self.task.model_path)
        self.index.tell(record)
        self.records.append(record)
        self.reporter.finished(record, self.best)

    def _again(self, first: TrialRecord) -> _Proposal:
        """Launch a configuration once more: one measurement may be lucky, and machines drift."""
        return _Proposal(f"again {first.number}", first.params, first)

    def _may_confirm(self) -> bool:
        if self.spent_s < self.task.budget_s:
            return True
        if "no budget was left" not in self.stop_reason:
            self.stop_reason += "; no budget was left to launch the best again"
        return False

    def _committed_s(self) -> float:
        """Return the engine time spent, and what the launches in flight will take, as far as is known."""
        landed = [record.spent_s for record in self.records if record.launched]
        each_s = sum(landed) / len(landed) if landed else 0.0
        return self.spent_s + each_s * len(self.in_flight)

    def _reserved_s(self) -> float:
        """Return the part of the budget that launching the best again will take."""
        if not self.task.confirm or not self.launches:
            return 0.0
        return (self.task.confirm + 1) * self.spent_s / self.launches

    def complete_folders(self) -> None:
        """Write again what trials of an earlier session lack: a kill or a full disk came between."""
        for record in self.records:
            if record.launched and self.folder.lacks(record.number, TRIAL_FILES):
                write_trial(self.folder, record, self.task.context.version, self.task.model_path)

    def _next_proposal(self) -> _Proposal | None:
        """Return the next seed, then the sampler's proposals; None, with the reason set, when the search is over.

        Proposals that are ruled out are recorded on the way.
        """
        while self.launches + len(self.in_flight) < self.task.trials:
            if self._committed_s() + self._reserved_s() >= self.task.budget_s:
                self.stop_reason = "the budget is spent"
                return None
            number = sum(record.repeats is None for record in (*self.records, *self.in_flight))
            if number < len(self.task.seeds):
                proposal = _Proposal(*self.task.seeds[number])
            elif self._ruled_out_in_a_row() >= MOST_RULED_OUT:
                self.stop_reason = "no proposal is left that could beat the best measured and is worth a launch"
                return None
            else:
                next_proposal = self._search()
                if next_proposal is None:
                    return None
                proposal = next_proposal
            if (ruled_out := self._ruled_out(proposal)) is None:
                return proposal
            self._keep(ruled_out)
        self.stop_reason = f"{self.task.trials} launches done"
        return None

    def _search(self) -> _Proposal | None:
        """Return the proposal of the fallback, the slices or the sampler; None, with the reason set, without one."""
        fallback = LeastMemoryFallback(self.task.space, self.records, patience=1 if self.index.guided else 0)
        if fallback.diagnosis:
            self.stop_reason = fallback.diagnosis
            return None
        if fallback.params is not None:
            return _Proposal(SAFEST, fallback.params)
        if self.screen and (params := self.screen.propose(self.records)) is not None:
            return _Proposal(SLICED, params)
        params = self.index.propose(self.in_flight)
        if params is None:
            self.stop_reason = self.index.why_none
            return None
        return _Proposal(SAMPLER, params)

    def _ruled_out_in_a_row(self) -> int:
        last = next((i for i, record in enumerate(reversed(self.records)) if record.launched), len(self.records))
        return last

    def _ruled_out(self, proposal: _Proposal) -> TrialRecord | None:
        """Return the record of a proposal that cannot run or cannot win, None for one worth a launch."""
        blank = self._blank(proposal, self._next_number())
        trials_so_far = (*self.records, *self.in_flight)
        reason = cannot_run(blank.config, self.task.context, self.task.workload, trials_so_far)
        reason = reason or quarantined(blank.config, self.records)
        if reason is not None:
            return replace(blank, outcome=TrialOutcome.RULED_OUT, reason=reason)
        draft, predicted = self.task.drafts.predict(blank)
        of_sampler = proposal.source == SAMPLER and (self.index.guided or self.index.exhaustive)
        if proposal.source in (SAFEST, SLICED) or of_sampler:
            return None
        reason = cannot_win(self.task.goal, blank.config, proposal.params, predicted, self.records)
        return None if reason is None else replace(draft, outcome=TrialOutcome.RULED_OUT, reason=reason)

    def _blank(self, proposal: _Proposal, number: int) -> TrialRecord:
        again = proposal.again
        config = again.config if again else self.task.space.config(proposal.params)
        blank = self.task.drafts.blank(proposal.source, proposal.params, config, self.records)
        return replace(blank, number=number, repeats=again.number if again else None)

    def _next_number(self) -> int:
        """Return the next number: those in flight have theirs already."""
        return 1 + max((record.number for record in (*self.records, *self.in_flight)), default=-1)

    def _try(self, proposal: _Proposal) -> None:
        """Launch a proposal; that it will be is on disk before, where several fly at once."""
        draft = self._blank(proposal, self._next_number())
        best = self.best
        flight = Flight(
            number=draft.number,
            source=draft.source,
            params=draft.params,
            known=len(self.records),
            beside=tuple(other.number for other in self.in_flight),
            to_beat=best.objective if best else None,
            repeats=draft.repeats,
        )
        if self.airspace.slots > 1:
            self.log.append(flight)
        self._take_off(flight, draft)

    def _draft_of(self, flight: Flight) -> TrialRecord:
        """Return the record in the making of a launch that an earlier session did not end."""
        again = next((record for record in self.records if record.number == flight.repeats), None)
        return self._blank(_Proposal(flight.source, flight.params, again), flight.number)

    def _take_off(self, flight: Flight, blank: TrialRecord) -> None:
        draft, predicted = self.task.drafts.predict(blank)
        self.reporter.launching(draft.number, draft.source, draft.config, predicted)
        self.in_flight.append(draft)
        self.airspace.start(flight, partial(self._launch, draft, flight.to_beat))

    def _launch(self, draft: TrialRecord, to_beat: float | None) -> TrialRecord:
        """Launch, and once more where the machine or the moment was at fault. Raises OperatorNeeded."""
        record = self._attempt(draft, to_beat)
        spent = 0.0
        for _ in range(RETRIES):
            if record.outcome is not TrialOutcome.FAILED:
                break
            spent += record.spent_s
            record = self._attempt(draft, to_beat)
        return replace(record, spent_s=record.spent_s + spent)

    def _attempt(self, draft: TrialRecord, to_beat: float | None) -> TrialRecord:
        """Start the server, climb the ladder, and return the record. The server is stopped in any case."""
        points: list[Measurement] = []
        boot_s, stopped = 0.0, ""
        try:
            server = self.engine.launch(draft.config, draft.number)
            info = server.info()
            boot_s, draft = info.boot_s, replace(draft, place=info.place)
            try:
                stopped = self._climb(server, draft, to_beat, points)
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

    def _climb(self, server: Server, draft: TrialRecord, to_beat: float | None, points: list[Measurement]) -> str:
        """Measure the ladder into `points`; return why not all of it, if so."""

        def keep(point: Measurement) -> None:
            points.append(point)
            self.reporter.point(draft.number, point)

        in_full = draft.source == BASELINE or draft.repeats is not None or self.index.exhaustive
        climb = LoadLadder(
            goal=self.task.goal,
            workload=self.task.workload,
            to_beat=None if in_full else to_beat,
            lower_rungs=self.task.lower_rungs,
        )
        users = draft.predicted.get(Objective.USERS, 1.0)
        return climb.up(server, draft.config, self.task.context, users, keep)

    def close(self) -> None:
        """Let go of the machine and the run folder; the records stay."""
        self.airspace.close()
        self.engine.close()
        self.folder.release()
