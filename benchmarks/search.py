#!/usr/bin/env python3
"""How near the tuner comes to the true optimum of generated worlds, beside other samplers, in virtual time.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--worlds 12] [--first 0] [--seeds 10] [--samplers model,tpe]

The true optimum of a world is noiseless: every allowed configuration in closed form under the world's truth, the
leaders replayed. A run's figure is the noiseless rate of the configuration it ends with over that optimum (0 where
it ends with none). `infeasible` counts launches that failed. One concurrency is measured per launch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from worlds import Problem, problem

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import ServerConfig
from models.estimate import Prediction, predict_many, replay_workload
from models.layout import table_of
from planner.plan import PlanQuestion
from tuner.candidates import candidates_of
from tuner.choices import EngineName, Objective, SamplerName
from tuner.engines.seam import Measurement
from tuner.engines.simulated import SimulatedEngine
from tuner.loop import Loop, Task
from tuner.record import TrialRecord
from tuner.setup import Prepared, TuneQuestion, prepare
from tuner.store import RunFolder
from tuner.study import StudyIndex

LAUNCHES = 12
LEADERS = 60


class OnePoint(Task):
    """Only the asked concurrency is measured: the score does not depend on the others."""

    def ladder(self) -> list[int]:
        return [self.workload.concurrency]


class Silent:
    """A reporter that shows nothing."""

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None: ...

    def point(self, number: int, measured: Measurement) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass
class Truth:
    """What a world really delivers, without noise."""

    prepared: Prepared
    known: dict[ServerConfig, float] = field(default_factory=dict)

    def rate(self, config: ServerConfig) -> float:
        """Return output tokens per second of a configuration."""
        if config not in self.known:
            world, workload = self.prepared.question.world, self.prepared.space.workload
            context = world.truth(self.prepared.plan.context, config)
            filled = context.memory(table_of([config]))
            self.known[config] = replay_workload(context, config, workload, filled).output_tok_s
        return self.known[config]

    def optimum(self) -> float:
        """Return the best rate that the world's memory allows."""
        rows, world = candidates_of(self.prepared.space), self.prepared.question.world
        holds = [c for c, free in zip(rows.configs, rows.memory.free, strict=True) if free >= world.extra_memory_gib]
        groups: dict[float, list[ServerConfig]] = {}
        for config in holds:
            tau = world.truth(self.prepared.plan.context, config).engine.parameters.tau_us
            groups.setdefault(tau, []).append(config)
        scored = [pair for group in groups.values() for pair in self._closed(group)]
        leaders = sorted(scored, key=lambda pair: -pair[0])[:LEADERS]
        return max(self.rate(config) for _, config in leaders)

    def _closed(self, group: list[ServerConfig]) -> list[tuple[float, ServerConfig]]:
        """Closed form of configurations that share one truth."""
        context = self.prepared.question.world.truth(self.prepared.plan.context, group[0])
        table = table_of(group)
        steady = predict_many(context, table, self.prepared.space.workload, context.memory(table))
        return list(zip(steady.output_tok_s.tolist(), group, strict=True))


def prepared_for(asked: Problem, sampler: SamplerName) -> Prepared:
    """Plan a problem for one sampler."""
    plan = PlanQuestion(
        hardware=hardware_from_catalogue(asked.machine), arch=deepseek_r1(), version=Version("0.5.12"),
        isl=asked.isl, osl=asked.osl, concurrency=asked.concurrency,
    )  # fmt: skip
    return prepare(
        TuneQuestion(
            plan=plan, objective=Objective.OUTPUT_TOK_S, engine=EngineName.SIMULATED, world=asked.world,
            trials=LAUNCHES, budget_s=float("inf"), seed=0, sampler=sampler, run=None, runs=Path(), resume=False,
        )
    )  # fmt: skip


def one_run(prepared: Prepared, sampler: SamplerName, seed: int, folder: Path) -> list[TrialRecord]:
    """Tune once and return the records."""
    question = replace(prepared.question, seed=seed)
    task = OnePoint(
        context=prepared.plan.context, workload=prepared.space.workload, slos=(), objective=question.objective,
        space=prepared.space, seeds=prepared.seeds, trials=LAUNCHES,
    )  # fmt: skip
    run = RunFolder.create(folder, question.manifest(), question.plan.hardware)
    index = StudyIndex(run.study_file, prepared.space, [], sampler=sampler, seed=seed)
    engine = SimulatedEngine(question.world, prepared.plan.context, seed)
    loop = Loop(task=task, engine=engine, folder=run, index=index, reporter=Silent())
    loop.run()
    run.release()
    return loop.records


def one_world(number: int, sampler: SamplerName, seeds: int, truths: dict[int, Truth]) -> tuple[list[float], list[int]]:
    """Return the score and the failed launches of every seed."""
    prepared = prepared_for(problem(number), sampler)
    if number in truths:  # equal spaces: the rows and the truth are found once
        prepared = replace(prepared, space=truths[number].prepared.space)
    truth = truths.setdefault(number, Truth(prepared))
    optimum, scores, failed = truth.optimum(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            records = one_run(prepared, sampler, seed, Path(folder) / str(seed))
            feasible = [record for record in records if record.feasible]
            best = max(feasible, key=lambda record: record.objective, default=None)
            scores.append(truth.rate(best.config) / optimum if best else 0.0)
            failed.append(sum(record.launched and not record.feasible for record in records))
    return scores, failed


def main() -> int:
    """Run every sampler in every world and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="number of the first world")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", default="model,tpe,gp,random,grid")
    asked = parser.parse_args()
    truths: dict[int, Truth] = {}
    print("sampler   median  worst quarter  infeasible of 12   worst  seconds a run")
    for name in asked.samplers.split(","):
        scores, failed, began = [], [], time.monotonic()
        for number in range(asked.first, asked.first + asked.worlds):
            got, lost = one_world(number, SamplerName(name), asked.seeds, truths)
            print(f"  {name} world {number}: median {np.median(got):.3f}, {np.mean(lost):.1f} infeasible",
                  file=sys.stderr, flush=True)  # fmt: skip
            scores += got
            failed += lost
        spent = (time.monotonic() - began) / len(scores)
        print(
            f"{name:8s} {np.median(scores):7.3f} {np.quantile(scores, 0.25):14.3f} {np.mean(failed):17.2f} "
            f"{min(scores):7.3f} {spent:14.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
