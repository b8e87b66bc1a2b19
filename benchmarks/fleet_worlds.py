"""Does `tune --servers any` find the right deployment? Worlds in which prefill/decode wins, loses, or needs one ratio.

    python benchmarks/fleet_worlds.py
    python benchmarks/fleet_worlds.py --worlds "slow network" --seeds 3

Virtual time, four nodes of 8 x H200, SGLang 0.5.23. `true best` is the best of all deployments that the closed forms
put ahead, under the planner's belief and under the world's truth, each played without noise; `of it` is what the chosen
one truly gives over that. `off` is the largest difference of a whole prefill/decode fleet, measured over predicted,
after its roles were measured alone; `off before` is what it would have been without.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from models.config import ServerConfig
from models.serving.estimate import Context
from planner.fleets.deployed import candidate_of, play_deployment, server_context
from planner.fleets.deployment import Deployment, Role
from planner.fleets.worth_launching import worth_launching
from planner.inputs import read_question
from planner.plans.make import PlanQuestion
from tuner.choices import EngineName, Objective, SamplerName, ServersChoice
from tuner.engines.world import World
from tuner.evidence.standings import decide
from tuner.evidence.trial import TrialRecord
from tuner.fleet_run.loop import FleetLoop
from tuner.fleet_run.proposals import Foreseen
from tuner.fleet_run.rate_matching import RoleRate
from tuner.fleet_run.setup import open_fleet_loop
from tuner.run.question import TuneQuestion
from tuner.seam import LaunchFailed

NOISE = 0.015


@dataclass(frozen=True, slots=True)
class Posed:
    """A world and the load that is asked of it."""

    world: World
    isl: int
    osl: int
    clients: int


def posed_in(name: str, isl: int, osl: int, clients: int, **truth: object) -> Posed:
    world = World(name=name, noise=NOISE, boot_s=420.0, **truth)  # type: ignore[arg-type]
    return Posed(world, isl, osl, clients)


WORLDS = (
    posed_in("as believed", 8000, 1000, 512),
    posed_in("short prompts", 1000, 1000, 512),
    posed_in("long answers", 1000, 8000, 512),
    posed_in("slow decode servers", 8000, 1000, 512, parameters={"decode_role": 0.7}),
    posed_in("slow network", 8000, 1000, 512, transfer_gb_s=0.05),
    posed_in("slow prefill servers", 2000, 1000, 512, parameters={"prefill_role": 0.5}),
    posed_in("fast prefill servers", 8000, 1000, 512, parameters={"prefill_role": 1.6}),
)


class Silent:
    """Hears and says nothing."""

    def launching(self, number: int, source: str, foreseen: Foreseen) -> None: ...

    def alone(self, rate: RoleRate) -> None: ...

    def not_alone(self, role: Role, failure: LaunchFailed) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One run: what was right, what was chosen, its true rate over the right one's, launches, errors of predictions."""

    world: str
    right: str
    chosen: str
    ratio: float
    launches: int
    off: float
    off_before: float


def score_of(posed: Posed, *, hardware: str, seed: int, folder: Path) -> Score:
    """Tune in one world, and compare with what is true there."""
    plan = read_question(
        hardware=hardware, model=None, sglang_version="newest", slo=None, profile=None, isl=posed.isl, osl=posed.osl,
        range_ratio=1.0, concurrency=posed.clients, request_rate=None, min_user_tok_s=None, users=None, mtp=True,
        acceptance=None, sigma=None,
    )  # fmt: skip
    question = TuneQuestion(
        plan=plan, objective=Objective.OUTPUT_TOK_S, engine=EngineName.SIMULATED, world=posed.world, trials=6,
        budget_s=float("inf"), seed=seed, sampler=SamplerName.MODEL, run=f"{posed.world.name}-{seed}", runs=folder,
        resume=False, servers=ServersChoice.ANY,
    )  # fmt: skip
    loop = open_fleet_loop(question, Silent())
    loop.run()
    loop.close()
    return _scored(loop, posed)


def _scored(loop: FleetLoop, posed: Posed) -> Score:
    decided = decide(loop.in_play)
    assert decided is not None  # there are no limits
    chosen = decided.winner.first.deployment
    assert isinstance(chosen, Deployment)
    truth = _Truth(posed.world, loop.plan)
    listed = {*worth_launching(loop.plan), *worth_launching(truth.question), chosen}
    rates = {deployment: truth.rate(deployment) for deployment in listed}
    right = max(rates, key=lambda deployment: rates[deployment])
    apart = [record for record in loop.records if record.deployment.pools[-1].role is Role.DECODE]  # type: ignore[union-attr]
    return Score(
        world=posed.world.name,
        right=right.name,
        chosen=chosen.name,
        ratio=rates[chosen] / rates[right],
        launches=len(loop.records),
        off=max((abs(record.over_predicted - 1.0) for record in apart), default=0.0),
        off_before=max((abs(_over_belief(record, loop.plan) - 1.0) for record in apart), default=0.0),
    )


def _over_belief(record: TrialRecord, plan: PlanQuestion) -> float:
    """Return measured over what was predicted before anything was measured."""
    assert isinstance(record.deployment, Deployment)
    workload = plan.workload(plan.concurrency or 1)
    predicted = candidate_of(record.deployment, partial(server_context, plan), workload, ())
    return record.target.output_tok_s / predicted.output_tok_s if record.target else 1.0


@dataclass(frozen=True, slots=True)
class _Truth:
    """What is true in a world."""

    world: World
    plan: PlanQuestion

    @property
    def question(self) -> PlanQuestion:
        """The plan's question with the world's engine as belief."""
        context = self.plan.context()
        true = {name: getattr(context.engine.parameters, name) * by for name, by in self.world.parameters.items()}
        parameters = replace(context.engine.parameters, **true)
        if self.world.transfer_gb_s is not None:
            parameters = replace(parameters, transfer_gb_s=self.world.transfer_gb_s)
        return replace(self.plan, engine=replace(context.engine, parameters=parameters))

    def context(self, config: ServerConfig) -> Context:
        return self.world.truth(server_context(self.plan, config), config)

    def rate(self, deployment: Deployment) -> float:
        """Return the deployment's output tok/s without noise."""
        transfer = self.world.transfer(self.context(deployment.pools[-1].config))
        workload = self.plan.workload(self.plan.concurrency or 1)
        return play_deployment(deployment, self.context, workload, transfer).seen.output_tok_s


def main(arguments: Sequence[str]) -> int:
    names = [posed.world.name for posed in WORLDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--hardware", default="4xh200x8")
    options = parser.parse_args(arguments)
    print("| world | in / out, clients | true best | chosen | of it | whole launches | off | off before |")
    print("|---|---|---|---|---|---|---|---|")
    for posed in WORLDS:
        for seed in range(options.seeds) if posed.world.name in options.worlds else ():
            with tempfile.TemporaryDirectory() as folder:
                score = score_of(posed, hardware=options.hardware, seed=seed, folder=Path(folder))
            load = f"{posed.isl:,} / {posed.osl:,}, {posed.clients}"
            print(
                f"| {score.world} | {load} | {score.right} | {score.chosen} | {score.ratio:.3f} | {score.launches} | "
                f"{score.off:.1%} | {score.off_before:.1%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
