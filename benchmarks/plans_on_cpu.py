#!/usr/bin/env python3
"""Whether the real SGLang does what plans say, calibrated on one point: a tiny DeepSeek-V3 on this machine's CPU.

    python benchmarks/plans_on_cpu.py         about five minutes; installs SGLang into .sglang/ the first time

One load is measured on the server of its plan, and an engine profile is calibrated to it. One point moves one number,
what a layer costs in launches; it is calibrated until that rests, as this is no GPU. Then three other questions are
planned with that profile, each plan's own flags start the real server, and `sgtune bench`'s load generator measures
what was asked for.
Compared are output tokens per second, mean TPOT and mean TTFT: measured over predicted, and whether it is within the
plan's 90 % band. Exit code 1 when a figure is not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import ROOT, machine
from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.inventory.nvml import Inventory
from hwprobe.profile import HardwareProfile
from models.architecture import ModelArchitecture, load_architecture
from models.engine.profile import EngineProfile
from models.layout import table_of
from models.records.calibration import calibrate
from models.records.case import STEADY_REQUESTS_PER_CLIENT, Case, Run
from models.version import parse_version
from planner.plans.make import Plan, PlanQuestion, make_plan
from tuner.bench.point import MeasuredPoint, Settings, measure_point
from tuner.engines.live import LiveEngine
from tuner.engines.runners import LocalRunner
from tuner.seam import LaunchOrder, Verdict
from tuner.server.gate import Gate

sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, RELEASE, Installed, install

VOCABULARY = 512
# Requests of a load that no other has come before: the server compiles and fills its caches.
WARM_UP = Settings(vocabulary=VOCABULARY, least_s=3.0, waves=2.0)
MEASURED = Settings(vocabulary=VOCABULARY, least_s=15.0, waves=10.0, most_s=60.0)
# A point that the machine's other work spoiled, by the load generator's own verdict, is measured again.
ATTEMPTS = 4
# A CPU is ten times as slow as the prior expects of any machine: it is calibrated again from where it came to rest.
MOST_ROUNDS, SETTLED = 40, 0.005
FIGURES = {"output_tok_s": "output tok/s", "tpot_mean_ms": "TPOT ms", "ttft_mean_ms": "TTFT ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop of clients."""

    isl: int
    osl: int
    clients: int


LEARNED_FROM = Load(isl=64, osl=32, clients=2)
ASKED = (Load(isl=32, osl=64, clients=1), Load(isl=100, osl=48, clients=4), Load(isl=48, osl=96, clients=3))


def this_machine() -> HardwareProfile:
    """Return a profile with an H200's figures and a processor's name: no profile was fitted to its family."""
    like = hardware_from_catalogue("h200x1")
    return replace(like, name="cpu", gpus=tuple(replace(gpu, name="CPU", compute_capability=None) for gpu in like.gpus))


def plan_of(load: Load, arch: ModelArchitecture, engine: EngineProfile | None = None) -> Plan:
    """Plan one load for the tiny model, on this machine as a GPU that nobody has fitted."""
    return make_plan(
        PlanQuestion(
            hardware=this_machine(),
            arch=arch,
            version=parse_version(RELEASE),
            isl=load.isl,
            osl=load.osl,
            concurrency=load.clients,
            mtp=False,
            engine=engine,
        )
    )


def run(plan: Plan, installed: Installed, folder: Path, number: int) -> MeasuredPoint:
    """Start what the plan prints on the real SGLang, and measure the load that was asked for."""
    assert plan.best is not None
    engine = LiveEngine(
        runner=LocalRunner(python=str(installed.python)),
        context=plan.context,
        model_path=str(installed.model),
        trials=folder,
        measure=lambda *_: None,  # type: ignore[arg-type, return-value]
        extra_flags=FLAGS,
        gate=Gate(read=lambda: Inventory(absent="none", software={})),
    )
    typed = ("--model-path", str(installed.model), "--trust-remote-code", *plan.argv(plan.best))
    server = engine.launch_order(LaunchOrder(config=plan.best.config, number=number, typed=typed))
    try:
        measure_point(server.url, plan.load, seed=number, settings=WARM_UP)
        for attempt in range(1, ATTEMPTS + 1):
            point = measure_point(server.url, plan.load, seed=100 * attempt + number, settings=MEASURED)
            if point.verdict is Verdict.OK:
                break
        return point
    finally:
        server.stop()


def measured(point: MeasuredPoint) -> dict[str, float]:
    """Return a point's figures by their names in point records."""
    window = point.window
    return {"output_tok_s": window.output_tok_s, "tpot_mean_ms": window.tpot.by["mean"],
            "ttft_mean_ms": window.ttft.by["mean"]}  # fmt: skip


def learn(plan: Plan, point: MeasuredPoint) -> EngineProfile:
    """Return the plan's engine profile, calibrated to one measured point."""
    assert plan.best is not None
    config, context, load = plan.best.config, plan.context, plan.load
    clients = load.concurrency
    case = Case(
        id="one point",
        context=context,
        config=config,
        run=Run(kind="steady", isl=load.isl, osl=load.osl, concurrency=clients,
                requests=STEADY_REQUESTS_PER_CLIENT * clients),
        kv_tokens=float(context.memory(table_of([config])).kv_tokens[0]),
        kv_known=False,
        measured=measured(point),
    )  # fmt: skip
    profile, base = context.engine, context.engine
    for _ in range(MOST_ROUNDS):
        tau_us = profile.parameters.tau_us
        start = replace(profile, covariance=base.covariance, relative_error=base.relative_error)
        profile = calibrate([case.with_parameters(profile.parameters)], start).profile
        if abs(profile.parameters.tau_us / tau_us - 1.0) < SETTLED:
            break
    return profile


def cells(name: str, plan: Plan, figures: dict[str, float]) -> tuple[str, bool]:
    """Return one figure of a row, and whether it is within the plan's band."""
    assert plan.best is not None
    prediction = plan.best.prediction
    middle = {"output_tok_s": prediction.output_tok_s, "tpot_mean_ms": prediction.tpot_ms["mean"],
              "ttft_mean_ms": prediction.ttft_ms["mean"]}[name]  # fmt: skip
    low, high = prediction.band[name]
    error = figures[name] / middle - 1.0
    inside = low <= figures[name] <= high
    return f"{middle:,.1f} ({low:,.1f} to {high:,.1f}) {error:+.0%}{'' if inside else ' OUTSIDE'}", inside


def main() -> int:
    """Run the plans, print the table, and say whether all figures are within their bands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    installed = install()
    arch = load_architecture(installed.model)
    print(machine())
    with tempfile.TemporaryDirectory() as home:
        first = plan_of(LEARNED_FROM, arch)
        point = run(first, installed, Path(home), 0)
        profile = learn(first, point)
        before, after = first.context.engine.parameters.tau_us, profile.parameters.tau_us
        print(f"\none point, {LEARNED_FROM}: {measured(point)}; tau_us {before:.3g} -> {after:.3g}\n")
        print("| in / out | clients | " + " | ".join(FIGURES.values()) + " | load generator |\n|" + "---|" * 6)
        all_inside = True
        for number, load in enumerate(ASKED, 1):
            plan = plan_of(load, arch, profile)
            point = run(plan, installed, Path(home), number)
            row = [cells(name, plan, measured(point)) for name in FIGURES]
            all_inside &= all(inside for _, inside in row)
            verdict = "" if point.verdict is Verdict.OK else f"{point.verdict}: {point.why}"
            texts = " | ".join(text for text, _ in row)
            print(f"| {load.isl} / {load.osl} | {load.clients} | {texts} | {verdict} |", flush=True)
    return 0 if all_inside else 1


if __name__ == "__main__":
    sys.exit(main())
