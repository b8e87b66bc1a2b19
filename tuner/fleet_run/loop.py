"""The loop over deployments: copies first, then the roles alone, then the few whole fleets that are worth a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from hwprobe.errors import InputError
from hwprobe.files import encode_json, read_bytes
from models.engine.profile import EngineProfile
from models.workload import Workload, missed
from planner.fleets.deployment import Deployment, Role
from planner.fleets.worth_launching import nearby, worth_launching
from planner.plans.candidates import Candidate
from planner.plans.make import PlanQuestion
from tuner.choices import SIMULATED_ENGINES, ServersChoice
from tuner.evidence.run_folder import RunFolder
from tuner.evidence.standings import winner_of
from tuner.evidence.trial import TrialOutcome, TrialRecord, best_of, in_play
from tuner.fleet_run.proposals import COPIES, Foreseen, Proposal, Standpoint, foresee
from tuner.fleet_run.rate_matching import RoleRate, calibrated, load_alone, role_rate
from tuner.run.question import TuneQuestion
from tuner.run.stop import OperatorNeeded, stop_where_alike
from tuner.run.trial_builder import key_of
from tuner.run.trial_files import write_record
from tuner.seam import Alone, FleetEngine, LaunchFailed, Measurement, Verdict
from tuner.server.failure import Policy, policy_of

# Launches of a whole fleet in one run, those that confirm among them.
MOST_WHOLE = 6
# Further launches of a deployment that failed through no fault of its own.
RETRIES = 1
RATES_FILE = "rates.json"


class FleetReporter(Protocol):
    """Hears what happens, to show it."""

    def launching(self, number: int, source: str, foreseen: Foreseen) -> None: ...

    def alone(self, rate: RoleRate) -> None: ...

    def not_alone(self, role: Role, failure: LaunchFailed) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass(slots=True)
class FleetLoop:
    """One run; `records` and `measured_alone` hold what earlier sessions of it measured, too.

    `baseline` are the best copies of one server that the engine can launch.
    """

    question: TuneQuestion
    engine: FleetEngine
    folder: RunFolder
    reporter: FleetReporter
    launchable: Callable[[Deployment], bool]
    baseline: Deployment
    records: list[TrialRecord] = field(default_factory=list)
    measured_alone: list[Alone] = field(default_factory=list)
    stop_reason: str = ""
    _tried_alone: bool = False
    _believed: tuple[tuple[int, int], PlanQuestion] | None = None
    _worth: tuple[EngineProfile, list[Deployment]] | None = None

    @property
    def plan(self) -> PlanQuestion:
        return self.question.plan

    @property
    def workload(self) -> Workload:
        return self.plan.workload(self.plan.concurrency or 1)

    @property
    def servers(self) -> ServersChoice:
        assert self.question.servers is not None  # the run was asked for deployments
        return self.question.servers

    @property
    def believed(self) -> PlanQuestion:
        """The plan's question under what was measured so far."""
        learned_from = (len(self.measured_alone), len(self.records))
        if self._believed is None or self._believed[0] != learned_from:
            question = calibrated(self.plan, self.measured_alone, self.records, self.workload)
            self._believed = (learned_from, question)
        return self._believed[1]

    @property
    def in_play(self) -> list[TrialRecord]:
        """The launches that may win: with --servers pd copies are the baseline, no answer."""
        return in_play(self.records, str(self.servers))

    @property
    def most(self) -> int:
        """Whole launches of this run."""
        return min(MOST_WHOLE, self.question.trials)

    @property
    def spent_s(self) -> float:
        alone_s = sum(one.boot_s + one.measured.duration_s for one in self.measured_alone)
        return alone_s + sum(record.spent_s for record in self.records)

    def run(self) -> None:
        """Launch until nothing is worth it or all launches are used; then launch the best again."""
        if not self.records:
            self._launch(Proposal(COPIES, self._foresee([self.baseline])[0]))
        while (proposal := self._next()) is not None:
            self._launch(proposal)
        self._confirm()

    def _next(self) -> Proposal | None:
        """Return the next launch; None, with the reason set, when the search is over."""
        if len(self.records) >= self.most:
            self.stop_reason = f"{self.most} launches of whole fleets done"
            return None
        if self.spent_s >= self.question.budget_s:
            self.stop_reason = "the budget is spent"
            return None
        foreseen = self._foreseen()
        if self._rates_missing(foreseen):
            self._match_rates(foreseen)
            foreseen = self._foreseen()
        proposal = Standpoint(foreseen, self.in_play).next()
        if proposal is None:
            self.stop_reason = "no other deployment is expected to beat the best by what a launch is worth"
        return proposal

    def _foreseen(self) -> list[Foreseen]:
        """Return every deployment that may be launched, and what is now believed of it."""
        believed = self.believed
        launched = [r.deployment for r in self.in_play if isinstance(r.deployment, Deployment)]
        assert believed.engine is not None  # it is calibrated
        if self._worth is None or self._worth[0] != believed.engine:
            self._worth = (believed.engine, worth_launching(believed, self.servers))
        listed = [*self._worth[1], *launched]
        listed += [other for deployment in launched for other in nearby(deployment, believed)]
        listed = [one for one in dict.fromkeys(listed) if one in launched or self.launchable(one)]
        return self._foresee(listed)

    def _foresee(self, deployments: Sequence[Deployment]) -> list[Foreseen]:
        return foresee(deployments, self.believed, self.workload)

    def _rates_missing(self, foreseen: Sequence[Foreseen]) -> bool:
        """Say whether prefill and decode apart might win, and nothing is measured of these roles yet."""
        if self.servers is ServersChoice.MIXED or self.measured_alone or self._tried_alone:
            return False
        standpoint = Standpoint(foreseen, self.in_play)
        return any(one.apart and standpoint.may_win(one) for one in foreseen)

    def _match_rates(self, foreseen: Sequence[Foreseen]) -> None:
        """Measure the roles of the best prefill/decode deployment alone, one server each."""
        self._tried_alone = True
        best = next(one for one in foreseen if one.apart)
        for role, pool in zip((Role.PREFILL, Role.DECODE), best.deployment.pools, strict=True):
            load = load_alone(role, best.candidate, self.workload, self.plan)
            try:
                measured = self.engine.measure_alone(role, pool.config, load, len(self.measured_alone))
            except LaunchFailed as failure:
                self._stop_for_operator(failure)
                self.reporter.not_alone(role, failure)  # it stays as predicted
                continue
            self.measured_alone.append(measured)
            self.folder.write(RATES_FILE, encode_json(self.measured_alone) + "\n")
            self.reporter.alone(role_rate(measured, self.plan, self.workload))

    def _confirm(self) -> None:
        """Launch the winner and the copies once more, as far as launches are left: one measurement may be lucky."""
        again = {record.repeats for record in self.records}
        winner = winner_of(self.in_play)
        if not self.question.confirm or winner is None:
            return
        for first in dict.fromkeys((winner.first.number, 0)):
            record = self.records[first]
            if first in again or len(self.records) >= self.most or record.target is None:
                continue
            foreseen = self._foresee([_deployment(record)])[0]
            self._launch(Proposal(f"again {first}", foreseen), repeats=first)

    def _launch(self, proposal: Proposal, repeats: int | None = None) -> None:
        """Launch a deployment, measure the asked load, and keep the record."""
        number = len(self.records)
        self.reporter.launching(number, proposal.source, proposal.foreseen)
        record = self._attempt(proposal, number)
        spent_s = 0.0
        for _ in range(RETRIES):
            if record.outcome is not TrialOutcome.FAILED:
                break
            spent_s += record.spent_s
            record = self._attempt(proposal, number)
        record = self.folder.append(replace(record, spent_s=record.spent_s + spent_s, repeats=repeats))
        write_record(self.folder, record)
        before = self.records[-1] if self.records else None
        self.records.append(record)
        self.reporter.finished(record, best_of(self.records))
        stop_where_alike(before, record)

    def _attempt(self, proposal: Proposal, number: int) -> TrialRecord:
        """Start the deployment, measure, and return the record; all of it is stopped in any case."""
        draft = self._draft(proposal, number)
        points: list[Measurement] = []
        boot_s = 0.0
        try:
            fleet = self.engine.launch_fleet(proposal.foreseen.deployment, number)
            try:
                boot_s = fleet.info().boot_s
                points.append(fleet.measure(self.workload))
                if points[-1].verdict is not Verdict.OK:
                    points.append(fleet.measure(self.workload))
            finally:
                fleet.stop()
        except LaunchFailed as failure:
            self._stop_for_operator(failure)
            ours = policy_of(failure.kind) is Policy.CONFIGURATION
            return replace(
                draft, outcome=TrialOutcome.INFEASIBLE if ours else TrialOutcome.FAILED, failure=failure.kind,
                reason=failure.evidence, points=tuple(points), boot_s=boot_s,
                constraints={**draft.constraints, "memory": 1.0 if ours else 0.0},
                spent_s=failure.seconds + sum(point.duration_s for point in points),
            )  # fmt: skip
        return self._measured(draft, points, boot_s)

    def _measured(self, draft: TrialRecord, points: Sequence[Measurement], boot_s: float) -> TrialRecord:
        point, goal = points[-1], self.question.goal
        spent_s = boot_s + sum(each.duration_s for each in points)
        record = replace(draft, points=(point,), boot_s=boot_s, spent_s=spent_s, decided_at=point.load)
        if point.verdict is not Verdict.OK:
            reason = f"the point at {point.concurrency:g} clients is {point.verdict}: {point.why}"
            return replace(record, outcome=TrialOutcome.FAILED, reason=reason)
        return replace(
            record,
            outcome=TrialOutcome.MEASURED,
            objective=goal.score(point.output_tok_s),
            value=point.output_tok_s,
            constraints={"memory": -1.0, **{key_of(slo): slo.excess(point) for slo in goal.constraining}},
            misses=missed(goal.constraining, point),
        )

    def _draft(self, proposal: Proposal, number: int) -> TrialRecord:
        candidate, deployment = proposal.foreseen.candidate, proposal.foreseen.deployment
        goal = self.question.goal
        return TrialRecord(
            number=number,
            source=proposal.source,
            params={},
            config=deployment.pools[-1].config,
            outcome=TrialOutcome.FAILED,
            predicted=predicted_figures(candidate),
            objective=min((record.objective for record in self.records), default=0.0),
            constraints={"memory": 0.0, **{key_of(slo): 0.0 for slo in goal.constraining}},
            simulated=self.question.engine in SIMULATED_ENGINES,
            deployment=deployment,
        )

    def _stop_for_operator(self, failure: LaunchFailed) -> None:
        if policy_of(failure.kind) is Policy.STOP:
            raise OperatorNeeded(failure, len(self.records)) from failure

    def close(self) -> None:
        """Let go of the machine and the run folder; the records stay."""
        self.engine.close()
        self.folder.release()


def predicted_figures(candidate: Candidate) -> dict[str, float]:
    """Return what is predicted of a whole deployment, under the names of trial records."""
    prediction = candidate.prediction
    scale = candidate.output_tok_s / prediction.output_tok_s
    low, high = prediction.band["output_tok_s"]
    return {
        "output_tok_s": candidate.output_tok_s,
        "tpot_mean_ms": prediction.tpot_ms["mean"],
        "ttft_mean_ms": prediction.ttft_ms["mean"],
        "output_tok_s_low": low * scale,
        "output_tok_s_high": high * scale,
    }


def read_alone(folder: RunFolder) -> list[Alone]:
    """Return what earlier sessions measured of roles alone. Raises InputError for a file that is none of ours."""
    file = folder.path / RATES_FILE
    if not file.exists():
        return []
    try:
        return msgspec.json.decode(read_bytes(file, "rates of roles"), type=list[Alone])
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: not what a run measured of roles alone ({error})") from error


def _deployment(record: TrialRecord) -> Deployment:
    assert isinstance(record.deployment, Deployment)  # every record of this loop has one
    return record.deployment
