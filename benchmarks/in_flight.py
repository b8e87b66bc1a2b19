"""What launches in flight cost in quality and save in time: twelve launches one at a time, and four at once.

    python benchmarks/in_flight.py --worlds 0-11

Virtual time, worlds and optimum as in search.py. A run counts by the true rate of what it measured best; hours are
those on the run's clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from search import Job, Silent, optimum, plan_of, true_rate, tune_question
from worlds import Asked

from tuner.choices import SamplerName
from tuner.evidence.trial import best_of
from tuner.run.setup import Prepared, open_loop, prepare


@dataclass(frozen=True, slots=True)
class Score:
    """One run: launches at once, best over optimum, hours on the clock and of engine time."""

    world: int
    at_once: int
    ratio: float
    hours: float
    engine_hours: float


def scores_of(number: int, at_once: list[int], seeds: int) -> list[Score]:
    """Run one world with every number of launches in flight, from every seed."""
    job = Job(number, (SamplerName.MODEL,), 1, Asked(), unpriced=False)
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(job.asked)
        prepared = prepare(tune_question(job, plan, SamplerName.MODEL, 0, Path(folder)))
        best = optimum(prepared.question.world, prepared)
        for slots in at_once:
            for seed in range(seeds):
                question = tune_question(job, plan, SamplerName.MODEL, seed, Path(folder))
                named = replace(question, run=f"{number}-{seed}-{slots}", parallel=slots)
                scores.append(_score(number, replace(prepared, question=named), best))
    return scores


def _score(number: int, prepared: Prepared, best: float) -> Score:
    loop, _ = open_loop(prepared, Silent())
    loop.task = replace(loop.task, lower_rungs=0)  # loads below the asked one decide nothing here
    loop.run()
    loop.close()
    chosen, world, belief = best_of(loop.records), prepared.question.world, prepared.plan.context
    rate = true_rate(world, belief, chosen.config, prepared.space.workload, (), 0.0) if chosen else 0.0
    air = loop.airspace
    return Score(number, air.slots, rate / best, air.elapsed_s / 3600, loop.spent_s / 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="0-11")
    parser.add_argument("--at-once", default="1,4")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    first, _, last = options.worlds.partition("-")
    at_once = [int(text) for text in options.at_once.split(",")]
    work = partial(scores_of, at_once=at_once, seeds=options.seeds)
    scores: list[Score] = []
    with multiprocessing.Pool(options.processes) as pool:
        for part in pool.imap_unordered(work, range(int(first), int(last or first) + 1)):
            scores += part
            print(*part, sep="\n", file=sys.stderr, flush=True)
    print(f"worlds {options.worlds}, {options.seeds} seed(s), twelve launches")
    print("at once | runs | best/optimum: mean | median | worst | hours on the clock | engine hours")
    for slots in at_once:
        mine = [score for score in scores if score.at_once == slots]
        ratio = np.array([score.ratio for score in mine])
        cells = [str(slots), str(len(mine)), f"{ratio.mean():.3f}", f"{np.median(ratio):.3f}", f"{ratio.min():.3f}"]
        cells += [f"{np.mean([s.hours for s in mine]):.2f}", f"{np.mean([s.engine_hours for s in mine]):.2f}"]
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
