#!/usr/bin/env python3
"""Whether who runs a printed plan sees its figures: plans drawn at random, run on the emulated server.

    python benchmarks/plans_as_run.py --plans 20 --seed 1
    python benchmarks/plans_as_run.py --plans 20 --seed 1 --chance     # starts no server

Each draws a machine, lengths, a load (clients, or requests per second) and limits. The plan's own argv starts an
emulated server whose world is the planner's belief, without noise; `sgtune bench`'s load generator measures it in real
time. Compared are output tokens per second, mean TPOT, TTFT mean and p99: measured over predicted, within 5, 5, 10 and
20 %. An open loop's window is one draw of its arrivals, so the replay is also asked for the very requests that were
sent ("own arrivals"): no chance is left in that. `--chance` replays what windows of so many requests show where
arrivals or lengths are drawn: their own standard deviation, which no prediction can beat; and what a closed loop's TTFT
becomes when client and front end take 1 ms more each way. Loads are small enough for two cores to stream. Exit code 1
when a figure is off by more.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.files import encode_json, write_atomic
from models.architecture import deepseek_r1
from models.layout import table_of
from models.serving.estimate import APART_S, Prediction, limits_of
from models.serving.open_loop import Draw, replay_open_loop
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.step_times import StepTimes
from models.version import NEWEST, parse_version
from models.workload import Slo
from planner.plans.make import Plan, PlanQuestion, make_plan
from tuner.bench.point import MeasuredPoint, Settings, measure_point
from tuner.engines.build import emulated_runner
from tuner.engines.follower import RankEngine
from tuner.engines.live import LiveEngine, LiveServer
from tuner.engines.world import World
from tuner.seam import LaunchOrder, Rank, Verdict

MACHINES = ("h200x8", "nf5688g7", "h20x8", "h20-3ex8", "b200x8", "h100x16")
TOLERANCES = {"output": 0.05, "TPOT": 0.05, "TTFT": 0.10, "TTFT p99": 0.20}
# More tokens or requests a second than this are the emulator's limit on two cores, not the plan's.
MOST_TOK_S = 1000.0
# Requests that count: a p99 of fewer is chance, the more so under arrivals at random.
COUNTED, COUNTED_OPEN = 200, 1000
LEAST_S = 15.0
LONGEST_S = 210.0
# Windows replayed for their scatter.
WINDOWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan and what its server did."""

    plan: Plan
    point: MeasuredPoint

    @property
    def errors(self) -> dict[str, float]:
        """Measured over predicted less one, by figure."""
        forecast, window = predicted(self.plan), self.point.window
        rate = self.plan.question.request_rate
        sent = 1.0 if rate is None else window.requests / window.seconds / rate
        pairs = {
            "output": (window.output_tok_s, forecast.output_tok_s * sent),
            "TPOT": (window.tpot.by["mean"], forecast.tpot_ms["mean"]),
            "TTFT": (window.ttft.by["mean"], forecast.ttft_ms["mean"]),
            "TTFT p99": (window.ttft.by["p99"], forecast.ttft_ms["p99"]),
        }
        return {name: measured / expected - 1.0 for name, (measured, expected) in pairs.items()}

    @property
    def own(self) -> dict[str, float]:
        """Measured over what the replay makes of the very requests that were sent, less one; {} for closed loops."""
        if self.plan.question.request_rate is None:
            return {}
        window, expected = self.point.window, replay_of_sent(self.plan, self.point)
        pairs = {
            "TPOT": (window.tpot.by["mean"], 1e3 * float(expected.tpot_s.mean())),
            "TTFT": (window.ttft.by["mean"], 1e3 * float(expected.ttft_s.mean())),
            "TTFT p99": (window.ttft.by["p99"], 1e3 * float(np.percentile(expected.ttft_s, 99))),
        }
        return {name: measured / replayed - 1.0 for name, (measured, replayed) in pairs.items()}

    @property
    def holds(self) -> bool:
        """Whether the plan's figures are measured; `own` decides where chance does not."""
        return all(abs(error) <= TOLERANCES[name] for name, error in self.errors.items())

    @property
    def own_holds(self) -> bool:
        """Whether the replay of what was sent is measured."""
        return all(abs(error) <= TOLERANCES[name] for name, error in self.own.items())


def predicted(plan: Plan) -> Prediction:
    assert plan.best is not None
    return plan.best.prediction


def replay_of_sent(plan: Plan, point: MeasuredPoint) -> Replay:
    """Replay the requests that the load generator sent, when it sent them; return those of its window."""
    assert plan.best is not None
    requests = sorted((each for outcome in point.outcomes for each in outcome.seen), key=lambda each: each.sent)
    config, began = plan.best.config, requests[0].sent
    table = table_of([config])
    filled = plan.context.memory(table)
    limits = limits_of(config, table, float(filled.kv_tokens[0]))
    largest = int(min(len(requests), table.most_running[0]))
    times = StepTimes(plan.context.system(table), acceptance=plan.context.acceptance, largest_batch=largest)
    load = ReplayLoad(
        isl=np.array([each.prompt_tokens or each.isl for each in requests]),
        osl=np.array([each.tokens for each in requests]),
        concurrency=len(requests),
        arrivals_s=np.array([each.sent - began for each in requests]),
    )
    played = replay(times, limits, load)
    sent = played.finish_s - played.e2e_s + began
    inside = (sent >= point.window.start) & (sent <= point.window.end)
    return replace(played, **{name: getattr(played, name)[inside] for name in ("ttft_s", "tpot_s")})


def draw(rng: random.Random) -> Iterator[Plan]:
    """Yield plans that meet their target and that two cores can stream, for ever."""
    while True:
        plan = make_plan(question(rng))
        if not (plan.fits and plan.meets_target):
            continue
        expected = predicted(plan)
        if expected.output_tok_s <= MOST_TOK_S and counted(plan) / expected.request_rate <= LONGEST_S:
            yield plan


def counted(plan: Plan) -> int:
    """Requests that a window is to hold."""
    return COUNTED if plan.question.request_rate is None else COUNTED_OPEN


def question(rng: random.Random) -> PlanQuestion:
    """Draw a machine, lengths, a load and, every second time, limits that the load may or may not meet."""
    isl, osl = (round(math.exp(rng.uniform(math.log(low), math.log(high)))) for low, high in ((100, 6000), (32, 256)))
    rate = rng.random() < 0.5
    limits: tuple[Slo, ...] = ()
    if rng.random() < 0.5:
        limits = (Slo.parse(f"tpot:mean<{rng.randint(10, 60)}ms"), Slo.parse(f"ttft:p99<{rng.randint(1, 5)}s"))
    return PlanQuestion(
        hardware=hardware_from_catalogue(rng.choice(MACHINES)),
        arch=deepseek_r1(),
        version=parse_version(NEWEST),
        isl=isl,
        osl=osl,
        range_ratio=rng.choice((1.0, 0.5)),
        concurrency=None if rate else rng.choice((1, 2, 4, 8, 16, 32)),
        request_rate=round(math.exp(rng.uniform(math.log(5.0), math.log(24.0))), 1) if rate else None,
        slos=limits,
    )


def run(plan: Plan, folder: Path, number: int, requests: int) -> Row:
    """Start what the plan prints on the emulated server and measure the load that was asked for."""
    assert plan.best is not None
    world = World(name="belief", noise=0.0, boot_s=0.5)
    write_atomic(folder / "hardware.json", encode_json(plan.question.hardware) + "\n")
    engine = LiveEngine(
        runner=emulated_runner(folder, plan.context, world, seed=number),
        context=plan.context,
        model_path="deepseek-ai/DeepSeek-R1",
        trials=folder / "trials",
        measure=lambda *_: None,  # type: ignore[arg-type, return-value]
    )
    expected, clients = predicted(plan), plan.concurrency
    seconds = max(LEAST_S, requests / expected.request_rate)
    settings = Settings(least_s=seconds, most_s=4 * seconds, waves=max(5.0, requests / clients))
    if plan.question.request_rate is not None:
        settings = replace(settings.at_rate(plan.load), least_s=seconds)
    typed = ("--model-path", "deepseek-ai/DeepSeek-R1", "--trust-remote-code", *plan.argv(plan.best))
    order = LaunchOrder(config=plan.best.config, number=number, typed=typed)
    with ExitStack() as stack:  # rank 0 is stopped first: the others wait for its word
        ranks: list[Rank | None] = [None]
        if plan.best.config.nnodes > 1:
            meet_at = f"127.0.0.1:{engine.meeting_port()}"
            ranks = [Rank(index=index, meet_at=meet_at) for index in reversed(range(plan.best.config.nnodes))]
        for rank in ranks:
            trial = number + 1000 * (rank.index if rank else 0)  # each rank has a folder of its own
            server = RankEngine(live=engine).launch_order(replace(order, rank=rank, number=trial))
            stack.callback(server.stop)
        assert isinstance(server, LiveServer)
        return Row(plan=plan, point=measure_point(server.url, plan.load, seed=number, settings=settings))


def described(row: Row) -> list[str]:
    """Return the cells of a table's row."""
    plan, figures, errors = row.plan, predicted(row.plan), row.errors
    limits = ", ".join(map(str, plan.question.slos))
    assert plan.best is not None
    return [
        *question_cells(plan), limits, plan.best.name,
        f"{figures.output_tok_s:,.0f} {errors['output']:+.1%}", f"{figures.tpot_ms['mean']:.1f} {errors['TPOT']:+.1%}",
        f"{figures.ttft_ms['mean']:,.0f} {errors['TTFT']:+.1%}",
        f"{figures.ttft_ms['p99']:,.0f} {errors['TTFT p99']:+.1%}",
        ", ".join(f"{name} {error:+.1%}" for name, error in row.own.items()),
        "yes" if row.holds else "NO",
        "" if row.point.verdict is Verdict.OK else f"{row.point.verdict}: {row.point.why}",
    ]  # fmt: skip


def windows_of(plan: Plan, slower_s: float = 0.0) -> list[Replay]:
    """Replay windows as long as those that are measured, each with arrivals and lengths of its own."""
    assert plan.best is not None
    config, load = plan.best.config, plan.load
    table = table_of([config])
    filled = plan.context.memory(table)
    seeds = range(100, 100 + WINDOWS)
    if load.request_rate is not None:
        draws = [Draw(seed=seed, least=COUNTED_OPEN) for seed in seeds]
        return [replay_open_loop(plan.context, config, load, filled, each) for each in draws]
    clients = load.concurrency
    times = StepTimes(plan.context.system(table), acceptance=plan.context.acceptance, largest_batch=clients)
    times.front_end_s += slower_s
    limits, windows = limits_of(config, table, float(filled.kv_tokens[0])), []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        isl, osl = (lengths.sample(COUNTED + 2 * clients, rng) for lengths in (load.isl, load.osl))
        loop = ReplayLoad(isl=isl, osl=osl, concurrency=clients, apart_s=APART_S)
        windows.append(replay(times, limits, loop, measure_from=clients, measure_until=clients + COUNTED))
    return windows


def scatter(windows: list[Replay]) -> tuple[float, ...]:
    """Return one relative standard deviation of TPOT, TTFT and its p99 among windows."""
    tpot = [float(window.tpot_s.mean()) for window in windows]
    ttft = [float(window.ttft_s.mean()) for window in windows]
    p99 = [float(np.percentile(window.ttft_s, 99)) for window in windows]
    return tuple(float(np.std(values) / np.mean(values)) for values in (tpot, ttft, p99))


def slower_ttft(plan: Plan, windows: list[Replay]) -> str:
    """Return by how much a closed loop's mean TTFT rises when each way takes a millisecond more."""
    if plan.load.request_rate is not None:
        return ""
    late = windows_of(plan, slower_s=0.001)
    means = [float(np.mean([window.ttft_s.mean() for window in each])) for each in (windows, late)]
    return f"{1e3 * (means[1] - means[0]):+.1f} ms"


def show_chance(plans: Iterator[Plan], count: int) -> None:
    """Print the scatter of every plan by its draws of arrivals and lengths, and what a slower client adds to a loop."""
    headings = ("machine", "in / out", "load", "plan", "TPOT", "TTFT", "TTFT p99", "TTFT with 1 ms more each way")
    print("| " + " | ".join(headings) + " |\n|" + "---|" * len(headings), flush=True)
    for _ in range(count):
        plan = next(plans)
        assert plan.best is not None
        windows = windows_of(plan)
        cells = [
            *question_cells(plan),
            plan.best.name,
            *(f"{share:.1%}" for share in scatter(windows)),
            slower_ttft(plan, windows),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def question_cells(plan: Plan) -> list[str]:
    """Return the cells of a question: machine, lengths, load."""
    query = plan.question
    load = f"{query.concurrency} clients" if query.concurrency else f"{query.request_rate:g}/s"
    return [query.hardware.name, f"{query.isl} / {query.osl}" + ("" if query.range_ratio == 1.0 else " +-"), load]


HEADINGS = (
    "machine", "in / out", "load", "limits", "plan", "output tok/s", "TPOT ms", "TTFT ms", "TTFT p99 ms",
    "own arrivals", "holds", "verdict of the load generator",
    "attempts",
)  # fmt: skip


def main() -> int:
    """Run the plans, print the table, and count what holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attempts", type=int, default=3, help="runs of a plan that is off, at most")
    parser.add_argument("--only", type=int, help="run only this one of them, from 1")
    parser.add_argument("--chance", action="store_true", help="replay the scatter of open loops instead")
    options = parser.parse_args()
    plans = draw(random.Random(options.seed))
    if options.chance:
        show_chance(plans, options.plans)
        return 0
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS), flush=True)
    as_predicted, as_replayed, ran = 0, 0, 0
    for number in range(1, options.plans + 1):
        plan = next(plans)
        if options.only not in (None, number):
            continue
        for attempt in range(1, options.attempts + 1):
            with tempfile.TemporaryDirectory() as folder:
                row = run(plan, Path(folder), number * options.attempts + attempt, counted(plan))
            if row.holds:
                break
        ran, as_predicted, as_replayed = ran + 1, as_predicted + row.holds, as_replayed + row.own_holds
        print("| " + " | ".join([*described(row), str(attempt)]) + " |", flush=True)
    print(f"\n{as_predicted} of {ran} plans ran as predicted; measured over predicted, within "
          + ", ".join(f"{name} {tolerance:.0%}" for name, tolerance in TOLERANCES.items()))  # fmt: skip
    print(f"{as_replayed} of {ran} as replayed with the arrivals that were sent (closed loops count as they are)")
    return 0 if as_predicted == ran else 1


if __name__ == "__main__":
    sys.exit(main())
