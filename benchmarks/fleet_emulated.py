"""Predicted against measured: emulated prefill and decode servers behind SGLang's router, in a world as believed.

    python benchmarks/fleet_emulated.py                    every case
    python benchmarks/fleet_emulated.py 1P1D-short ...     some of them

Starts each fleet, measures it through the router with `sgtune bench`, replays it with `models/serving/fleet_replay.py`,
and prints both. A case takes half a minute to two minutes; a busy machine stretches what is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models.serving.estimate import APART_S
from models.serving.fleet_replay import FleetLoad
from models.workload import Lengths
from tests.emulated_fleet import believed, emulated_fleet, held_back_ms

# Requests of a client in the replay; lengths are uniform from half of the nominal one, or clients march in step.
WAVES, RATIO = 30, 0.5


@dataclass(frozen=True)
class Case:
    """A fleet, by how many servers of which flags, and a load."""

    prefill: tuple[str, ...]
    decode: tuple[str, ...]
    isl: int
    osl: int
    clients: int


TP8 = "--tp-size 8"
DP8 = "--tp-size 8 --dp-size 8 --enable-dp-attention"
CASES = {
    "1P1D-short": Case((TP8,), (TP8,), 1000, 100, 16),
    "1P1D-long-answers": Case((TP8,), (TP8,), 1000, 400, 32),
    "1P1D-dp8-decode": Case((TP8,), (DP8,), 2000, 300, 32),
    "2P1D-long-prompts": Case((TP8, TP8), (TP8,), 6000, 200, 24),
    "1P1D-starved": Case((TP8,), (TP8,), 8000, 100, 24),
    "1P2D": Case((TP8,), (TP8, TP8), 1000, 300, 48),
    "1P1D-capped": Case((TP8,), (f"{TP8} --max-running-requests 40",), 1000, 200, 64),
    "1P1D-mtp": Case((TP8,), (f"{TP8} --speculative-algorithm EAGLE --speculative-num-steps 1 "
                              "--speculative-eagle-topk 1 --speculative-num-draft-tokens 2",), 2000, 200, 16),
}  # fmt: skip


def predicted(case: Case) -> tuple[float, float, float]:
    """Return output tok/s, mean TPOT and mean TTFT in ms."""
    rng, count = np.random.default_rng(0), WAVES * case.clients
    isl, osl = (Lengths(nominal=nominal, range_ratio=RATIO).sample(count, rng) for nominal in (case.isl, case.osl))
    load = FleetLoad(isl=isl, osl=osl, concurrency=case.clients, apart_s=APART_S)
    clients = believed(case.prefill, case.decode, load).seen
    output_tok_s = case.clients * float(
        clients.osl.sum() / clients.e2e_s.sum()
    )  # Little's law, as the planner takes it
    return output_tok_s, 1e3 * float(clients.tpot_s.mean()), 1e3 * float(clients.ttft_s.mean())


@dataclass(frozen=True)
class Measured:
    """What bench saw of a running fleet, and how long its router holds a first token back."""

    output_tok_s: float
    tpot_ms: float
    ttft_ms: float
    held_ms: float


def measured(case: Case) -> Measured:
    """Start a fleet and measure it. Raises RuntimeError where bench fails."""
    with (
        tempfile.TemporaryDirectory() as folder,
        emulated_fleet(Path(folder), prefill=case.prefill, decode=case.decode) as fleet,
    ):
        command = [sys.executable, "-m", "tuner.cli.main", "bench", "--url", fleet.router, "--isl", str(case.isl),
                   "--osl", str(case.osl), "--concurrency", str(case.clients), "--point-time", "5s",
                   "--range-ratio", str(RATIO), "--json"]  # fmt: skip
        held_ms = held_back_ms(fleet)
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr)
    point = json.loads(ran.stdout)["points"][0]
    return Measured(point["output_tok_s"], point["tpot_ms"]["mean"], point["ttft_ms"]["mean"], held_ms)


def off(low: float, was: float, high: float | None = None) -> float:
    """Return by what share a figure misses a prediction, or a range of them."""
    high = low if high is None else high
    return (was - high) / high if was > high else min(0.0, (was - low) / low)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(CASES)}")
    names = parser.parse_args().case or list(CASES)
    print("| fleet | in / out, clients | output tok/s | TPOT ms | TTFT ms |\n|---|---|---|---|---|")
    worst = 0.0
    for name in names:
        case = CASES[name]
        (rate, tpot_ms, ttft_ms), was = predicted(case), measured(case)
        held_ms = ttft_ms + was.held_ms
        misses = off(rate, was.output_tok_s), off(tpot_ms, was.tpot_ms), off(ttft_ms, was.ttft_ms, held_ms)
        print(
            f"| {name} | {case.isl:,} / {case.osl:,}, {case.clients} "
            f"| {rate:,.0f} / {was.output_tok_s:,.0f} ({misses[0]:+.1%}) "
            f"| {tpot_ms:.1f} / {was.tpot_ms:.1f} ({misses[1]:+.1%}) "
            f"| {ttft_ms:,.0f} to {held_ms:,.0f} / {was.ttft_ms:,.0f} ({misses[2]:+.1%}) |",
            flush=True,
        )
        worst = max(worst, *map(abs, misses))
    print("\npredicted / measured; TTFT: with what the router may hold back, as it was measured for single requests")
    print(f"the largest difference is {worst:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
