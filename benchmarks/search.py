"""How near to a world's true optimum a sampler comes with a few launches, in worlds the planner does not know.

    python benchmarks/search.py --worlds 0-11 --seeds 10 --out found.jsonl
    python benchmarks/search.py --worlds 100-123 --seeds 3 --questions broad

Virtual time. The optimum of a world is the best of its whole space under its truth, without noise: all rows in closed
form, the best SHORTLIST of them replayed, and from the best of those every combination of the unpriced knobs the world
speaks of. With `--questions broad` every world is another machine, version, workload and limit. A configuration found
counts 0 where it misses the limit by more than the noise. Finished work in `--out` is not repeated. Worlds from 1000 on
are for a last look, not for development.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from worlds import Asked, question, world

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context, Prediction, predict_many, replay_workload, statistics_ms
from models.version import parse_version
from models.workload import Metric, Slo, Statistic, Workload
from planner.plans.make import PlanQuestion, make_plan
from tuner.choices import EngineName, Objective, SamplerName
from tuner.engines.world import World
from tuner.engines.world_memory import boot_failure, fails_under_load
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.run.question import TuneQuestion
from tuner.run.setup import Prepared, open_loop, prepare
from tuner.seam import Measurement
from tuner.search.configurations import allowed, candidates_of
from tuner.search.unmodelled_knobs import UnmodelledKnobs

LAUNCHES = 12
SHORTLIST = 300  # with 40, the optimum of one world in twelve was 1.1 % too low
COMBINED = 12  # leaders that unpriced knobs are combined with
FULL_LAUNCHES = (4, 8, 12)
WITHIN_NOISE = 0.03


class Silent:
    """Shows nothing."""

    def launching(self, number: int, source: str, config: ServerConfig, predicted: Prediction) -> None: ...

    def point(self, number: int, measured: Measurement) -> None: ...

    def finished(self, record: TrialRecord, best: TrialRecord | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Score:
    """Best feasible over optimum after 4, 8 and 12 launches, and launches that ran out of memory."""

    sampler: str
    world: int
    seed: int
    ratios: tuple[float, ...]
    infeasible: int
    launches: int


@dataclass(frozen=True, slots=True)
class Job:
    """One world: its optimum once, then every sampler with every seed."""

    world: int
    samplers: tuple[SamplerName, ...]
    seeds: int
    asked: Asked
    unpriced: bool
    best: float | None = None
    other_seeds: int | None = None


def plan_of(inputs: Asked) -> PlanQuestion:
    """Return the plan's question; a limit is so many times the TPOT of the plan's own best without it."""
    plan = PlanQuestion(
        hardware=hardware_from_catalogue(inputs.hardware), arch=deepseek_r1(), version=parse_version(inputs.version),
        isl=inputs.isl, osl=inputs.osl, concurrency=inputs.concurrency, mtp=inputs.mtp,
    )  # fmt: skip
    best = make_plan(plan).best if inputs.tpot_limit else None
    if best is None or inputs.tpot_limit is None:
        return plan
    limit_ms = inputs.tpot_limit * best.prediction.tpot_ms["mean"]
    return replace(plan, slos=(Slo(metric=Metric.TPOT, statistic=Statistic.MEAN, limit_ms=limit_ms),))


def tune_question(job: Job, plan: PlanQuestion, sampler: SamplerName, seed: int, runs: Path) -> TuneQuestion:
    return TuneQuestion(
        plan=plan, objective=Objective.OUTPUT_TOK_S, engine=EngineName.SIMULATED,
        world=world(job.world, unpriced=job.unpriced), trials=LAUNCHES, budget_s=math.inf, seed=seed,
        sampler=sampler, run=f"{job.world}-{seed}-{sampler}", runs=runs, resume=False,
    )  # fmt: skip


def true_rate(
    truth: World, belief: Context, config: ServerConfig, workload: Workload, slos: tuple[Slo, ...], within: float
) -> float:
    """Return tok/s of a configuration in the world without noise; 0 out of memory or beyond a limit by `within`."""
    context = truth.truth(belief, config)
    filled = context.memory(table_of([config]))
    if boot_failure(truth, filled) is not None or fails_under_load(truth, filled):
        return 0.0
    played = replay_workload(context, config, workload, filled, seed=1)
    tpot_ms = statistics_ms(played.tpot_s)
    missed = any(math.log(tpot_ms[slo.statistic] / slo.limit_ms) > within for slo in slos)
    return 0.0 if missed else played.output_tok_s


def optimum(truth: World, prepared: Prepared) -> float:
    """Return the best true rate over the space."""
    belief, workload, slos = prepared.plan.context, prepared.space.workload, prepared.question.plan.slos
    space = prepared.space
    rows = candidates_of(space)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, config in enumerate(rows.configs):  # an effect depends on these knobs only: each group has one truth
        steps = config.speculative.num_steps if config.speculative else 0
        key = (config.attn_dp_size, config.ep_size, config.pp_size, steps, config.chunked_prefill_size)
        groups.setdefault(key, []).append(index)
    rated: list[tuple[float, int]] = []
    for members in groups.values():
        configs = [rows.configs[i] for i in members]
        context = truth.truth(belief, configs[0])
        table = table_of(configs)
        filled = context.memory(table)
        steady = predict_many(context, table, workload, filled)
        holds = (filled.free >= truth.extra_memory_gib) & (filled.kv_pool > 0)
        for slo in slos:
            holds &= steady.tpot_s * 1e3 <= 1.1 * slo.limit_ms
        rated += [(float(rate), i) for rate, i, ok in zip(steady.output_tok_s, members, holds, strict=True) if ok]
    rated.sort(key=lambda item: -item[0])

    def rate(config: ServerConfig) -> float:
        return true_rate(truth, belief, config, workload, slos, 0.0)

    exact = sorted(((rate(rows.configs[i]), i) for _, i in rated[:SHORTLIST]), key=lambda item: -item[0])
    best = exact[0][0] if exact else 0.0
    spoken: dict[str, set[Any]] = {}
    for effect in truth.effects:
        for name, value in effect.when.items():
            if value in space.choices.get(name, ())[1:] and name in space.defaults:
                spoken.setdefault(name, set()).add(value)
    combinations = [
        dict(zip(spoken, values, strict=True)) for values in itertools.product(*([None, *v] for v in spoken.values()))
    ]
    leaders = [rows.params[i] for _, i in exact[:COMBINED]]
    leading_params = [
        base | {name: value for name, value in chosen.items() if value is not None}
        for base in leaders
        for chosen in combinations[1:]
    ]
    more = [config for params in leading_params if allowed(space, config := space.config(params))]
    more += UnmodelledKnobs(space).around(leaders[:2]).configs
    return max([best, *(rate(config) for config in more)])


def run_job(job: Job) -> tuple[list[Score], float]:
    """Tune one world with every sampler, seed by seed; return the scores and the world's optimum."""
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(job.asked)
        best = job.best
        for sampler in job.samplers:
            prepared = prepare(tune_question(job, plan, sampler, 0, Path(folder)))
            best = optimum(prepared.question.world, prepared) if best is None else best
            others = sampler != job.samplers[0] and job.other_seeds is not None
            for seed in range(job.other_seeds or 0) if others else range(job.seeds):
                tuning = tune_question(job, plan, sampler, seed, Path(folder))
                loop, _ = open_loop(replace(prepared, question=tuning), Silent())
                loop.task = replace(loop.task, lower_rungs=0)  # loads below the asked one decide nothing here
                loop.run()
                loop.close()
                scores.append(_score(loop.records, job, sampler, seed, best, prepared))
    return scores, best or 0.0


def _score(
    records: list[TrialRecord], job: Job, sampler: SamplerName, seed: int, best: float, prepared: Prepared
) -> Score:
    truth, belief, slos = prepared.question.world, prepared.plan.context, prepared.question.plan.slos
    launched = [record for record in records if record.launched]
    ratios = []
    for count in FULL_LAUNCHES:
        good = [record for record in launched[:count] if record.feasible]
        chosen = max(good, key=lambda record: record.objective, default=None)
        rate = (
            true_rate(truth, belief, chosen.config, prepared.space.workload, slos, WITHIN_NOISE)
            if chosen
            else float(best == 0.0)
        )
        ratios.append(rate / best if best else rate)
    bad = sum(record.outcome is TrialOutcome.INFEASIBLE for record in launched)
    return Score(sampler, job.world, seed, tuple(ratios), bad, len(launched))


def table(scores: list[Score], samplers: list[SamplerName]) -> str:
    """Return the table of all samplers, and the model's worlds where it did worst."""
    lines = ["sampler | runs | median at 4 | at 8 | at 12 | worst quarter at 12 | worst | infeasible | launches"]
    for sampler in samplers:
        mine = [score for score in scores if score.sampler == sampler]
        if not mine:
            continue
        by = np.array([score.ratios for score in mine])
        cells = [str(len(mine)), *(f"{value:.3f}" for value in np.median(by, axis=0))]
        cells += [f"{np.percentile(by[:, -1], 25):.3f}", f"{by[:, -1].min():.3f}"]
        cells += [f"{np.mean([score.infeasible for score in mine]):.2f}", f"{np.mean([s.launches for s in mine]):.1f}"]
        lines.append(" | ".join([str(sampler), *cells]))
    first = [score for score in scores if score.sampler == samplers[0]]
    by_world = {number: [s.ratios[-1] for s in first if s.world == number] for number in {s.world for s in first}}
    worst = sorted(by_world.items(), key=lambda item: float(np.mean(item[1])))[:4]
    lines.append("worst worlds: " + ", ".join(f"{number} ({np.mean(ratios):.3f})" for number, ratios in worst))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="0-11")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--other-seeds", type=int, default=None, help="seeds of all samplers but the first")
    parser.add_argument("--samplers", default="model,tpe,gp,random,grid")
    parser.add_argument("--questions", choices=("one", "broad"), default="one")
    parser.add_argument("--priced-only", action="store_true", help="no effects of unpriced knobs in the worlds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines of finished runs, to go on from")
    options = parser.parse_args()
    first, _, last = options.worlds.partition("-")
    samplers = [SamplerName(name) for name in options.samplers.split(",")]
    lines = options.out.read_text().splitlines() if options.out is not None and options.out.exists() else []
    scores = [Score(**{**json.loads(line), "ratios": tuple(json.loads(line)["ratios"])}) for line in lines]
    scored = {(score.world, score.sampler) for score in scores}
    jobs = []
    optima_file = options.out.with_suffix(".optima") if options.out is not None else None
    optima: dict[str, float] = (
        json.loads(optima_file.read_text()) if optima_file is not None and optima_file.exists() else {}
    )
    for number in range(int(first), int(last or first) + 1):
        missing = tuple(sampler for sampler in samplers if (number, sampler) not in scored)
        put = question(number) if options.questions == "broad" else Asked()
        if missing:
            jobs.append(
                Job(
                    number,
                    missing,
                    options.seeds,
                    put,
                    not options.priced_only,
                    optima.get(str(number)),
                    options.other_seeds,
                )
            )
    with multiprocessing.Pool(options.processes, maxtasksperchild=1) as pool:
        for part, best in pool.imap_unordered(run_job, jobs):
            scores += part
            optima[str(part[0].world)] = best
            if options.out is not None and optima_file is not None:
                optima_file.write_text(json.dumps(optima))
                with options.out.open("a") as stream:
                    stream.writelines(json.dumps(asdict(score)) + "\n" for score in part)
            sys.stderr.write(f"world {part[0].world}: {[round(s.ratios[-1], 3) for s in part]}\n")
    sys.stdout.write(f"worlds {options.worlds}, {options.seeds} seeds, {options.questions} question(s)\n")
    sys.stdout.write(table(scores, samplers))


if __name__ == "__main__":
    main()
