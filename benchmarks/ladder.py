"""What trying slices first saves: launches of the whole model until one comes within 3 % of a world's optimum.

    python benchmarks/ladder.py --worlds 0-11

Virtual time. Worlds as in search.py: `honest` ones show every effect of a knob on a slice too; in `blind` ones no slice
shows any; in `false` ones slices show the opposite. The control starts from the baseline alone, as --fidelity slice
does. A trial counts by its true rate, and which of a run's trials is best is decided by what was measured.
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
from worlds import Asked, world

from tuner.choices import Fidelity, SamplerName
from tuner.engines.world import Effect, World
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.run.loop import Loop
from tuner.run.question import TuneQuestion
from tuner.run.setup import Prepared, open_loop, prepare

REACHED = 0.97
KINDS = ("honest", "blind", "false")
ARMS = ("no slices", "no slices, baseline alone first", "slices first")


@dataclass(frozen=True, slots=True)
class Score:
    """One run: launches until 0.97 (launches + 1: never), best over optimum at the end, slices, hours of engine."""

    kind: str
    arm: str
    world: int
    reached: int
    after_two: float
    after_four: float
    final: float
    infeasible: int
    slices: int
    hours: float
    hours_to_reach: float


def world_of(number: int, kind: str) -> World:
    """Return a world of the search benchmark, whose slices are honest, blind or false."""
    honest = world(number, unpriced=False)
    if kind == "honest":
        return honest
    effects = [replace(effect, on="whole") for effect in honest.effects]
    if kind == "false":
        effects += [Effect(when=e.when, time_factor=1.0 / e.time_factor, on="slice") for e in honest.effects]
    return replace(honest, effects=tuple(effects))


def score(number: int, kinds: list[str], trials: int) -> list[Score]:
    """Run every arm in every kind of one world."""
    scores, best = [], 0.0
    job = Job(number, (SamplerName.MODEL,), 1, Asked(), unpriced=False)
    with tempfile.TemporaryDirectory() as folder:
        plain = tune_question(job, plan_of(job.asked), SamplerName.MODEL, 0, Path(folder))
        for kind in kinds:
            base = replace(plain, world=world_of(number, kind), trials=trials)
            prepared = prepare(replace(base, run="x"))
            best = best or optimum(base.world, prepared)  # slices do not change what is true of the whole
            for arm in ARMS if kind == "honest" else ARMS[2:]:
                scores.append(_score(kind, arm, number, base, prepared, best))
    return scores


def _score(kind: str, arm: str, number: int, base: TuneQuestion, prepared: Prepared, best: float) -> Score:
    fidelity = Fidelity.SLICE if arm == ARMS[2] else Fidelity.WHOLE
    prepared_run = prepare(replace(base, fidelity=fidelity, run=f"{number}-{kind}-{ARMS.index(arm)}"))
    if arm == ARMS[1]:
        prepared_run = replace(prepared_run, seeds=prepared_run.seeds[:1])
    loop, _ = open_loop(prepared_run, Silent())
    loop.task = replace(loop.task, lower_rungs=0)  # loads below the asked one decide nothing here
    loop.run()
    loop.close()
    ratios = _ratios(loop.records, base.world, prepared, best)
    launched = [record for record in loop.records if record.launched]
    reached = next((i for i, ratio in enumerate(ratios, 1) if ratio >= REACHED), base.trials + 1)
    return Score(
        kind=kind,
        arm=arm,
        world=number,
        reached=reached,
        after_two=ratios[min(1, len(ratios) - 1)],
        after_four=ratios[min(3, len(ratios) - 1)],
        final=ratios[-1],
        infeasible=sum(record.outcome is TrialOutcome.INFEASIBLE for record in launched),
        slices=len(loop.screen.file.records) if loop.screen else 0,
        hours=loop.spent_s / 3600,
        hours_to_reach=_hours(loop, launched[:reached]),
    )


def _hours(loop: Loop, launched: list[TrialRecord]) -> float:
    """Return the engine hours of these first launches of a run, and of the slices tried before the last of them."""
    slices = loop.screen.file.records if loop.screen else []
    before = sum(record.spent_s for record in slices if record.after <= launched[-1].number)
    return (before + sum(record.spent_s for record in launched)) / 3600


def _ratios(records: list[TrialRecord], truth: World, prepared: Prepared, best: float) -> list[float]:
    """Return, after each launch, the true rate of the best measured so far over the optimum."""
    launched = [record for record in records if record.launched]
    ratios = []
    for count in range(1, len(launched) + 1):
        good = [record for record in launched[:count] if record.outcome is TrialOutcome.MEASURED]
        chosen = max(good, key=lambda record: record.objective, default=None)
        belief, workload = prepared.plan.context, prepared.space.workload
        rate = true_rate(truth, belief, chosen.config, workload, (), 0.0) if chosen else 0.0
        ratios.append(rate / best)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="0-11")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    first, _, last = options.worlds.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    work = partial(score, kinds=options.kinds.split(","), trials=options.trials)
    scores: list[Score] = []
    with multiprocessing.Pool(options.processes) as pool:
        for part in pool.imap_unordered(work, numbers):
            scores += part
            print(*part, sep="\n", file=sys.stderr, flush=True)
    print(f"{len(numbers)} worlds ({options.worlds}), {options.trials} launches")
    print(
        "worlds | search | launches to 0.97: median | worst quarter | worst | never | after 2: median, worst | "
        "after 4: median, worst | at the end: worst | infeasible | slices | engine hours to 0.97: median | in all"
    )
    for kind in options.kinds.split(","):
        for arm in ARMS:
            mine = [item for item in scores if (item.kind, item.arm) == (kind, arm)]
            if mine:
                print(_line(kind, arm, mine, options.trials))


def _line(kind: str, arm: str, mine: list[Score], trials: int) -> str:
    reached = np.array([item.reached for item in mine])
    worst = int(reached.max())
    cells = [
        kind, arm, f"{np.median(reached):.1f}", f"{np.percentile(reached, 75):.1f}",
        f"{worst}" if worst <= trials else f"> {trials}", f"{np.sum(reached > trials)}",
    ]  # fmt: skip
    for values in ([item.after_two for item in mine], [item.after_four for item in mine]):
        cells.append(f"{np.median(values):.3f}, {min(values):.3f}")
    cells.append(f"{min(item.final for item in mine):.3f}")
    cells += [f"{np.mean([item.infeasible for item in mine]):.2f}", f"{np.mean([item.slices for item in mine]):.1f}"]
    cells += [f"{np.median([i.hours_to_reach for i in mine]):.2f}", f"{np.mean([i.hours for i in mine]):.1f}"]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
