#!/usr/bin/env python3
"""The tables of docs/fleets.md: which deployment wins on 2, 4, 8 and 16 nodes of eight H200 for four workloads.

    python tools/fleet_tables.py [--hardware h200x8] [--nodes 2,4,8,16]

Prints a Markdown table: the winner and its tokens per second, k copies of the one-node answer beside it, and why.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.version import NEWEST
from planner.fleets.make_fleet import plan_fleet
from planner.plans.make import Plan, PlanQuestion, make_plan

CLIENTS_PER_NODE = 128


@dataclass(frozen=True, slots=True)
class Load:
    """A workload: input and output tokens, and clients per node."""

    isl: int
    osl: int
    clients: int = CLIENTS_PER_NODE


LOADS = (Load(1000, 1000), Load(8000, 1000), Load(1000, 8000), Load(32000, 500, 32))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--hardware", default="h200x8", help="one node, as the catalogue names it")
    parser.add_argument("--nodes", default="2,4,8,16", help="how many nodes, several by comma")
    options = parser.parse_args()
    print("| nodes | in / out, clients | winner | tok/s | copies of one node | gain | TTFT, TPOT ms | held back by |")
    print("|---|---|---|---|---|---|---|---|")
    for nodes in map(int, options.nodes.split(",")):
        for load in LOADS:
            print(row(options.hardware, nodes, load), flush=True)
    return 0


def row(hardware: str, nodes: int, load: Load) -> str:
    """Return one line of the table."""
    best = plan_fleet(question(f"{nodes}x{hardware}", load, load.clients * nodes)).best
    one = copies(make_plan(question(hardware, load, load.clients)))
    if best is None or one is None:
        return f"| {nodes} | {load.isl:,} / {load.osl:,} | does not fit | | | | | |"
    name, rate = one
    prediction = best.prediction
    return (
        f"| {nodes} | {load.isl:,} / {load.osl:,}, {load.clients * nodes:,} | {best.name} | {best.output_tok_s:,.0f} "
        f"| {nodes} x {name}: {nodes * rate:,.0f} | {100 * (best.output_tok_s / (nodes * rate) - 1):+.0f} % "
        f"| {prediction.ttft_ms['mean']:,.0f}, {prediction.tpot_ms['mean']:.1f} | {prediction.limiting} |"
    )


def question(hardware: str, load: Load, clients: int) -> PlanQuestion:
    """Return the question of one line."""
    return PlanQuestion(
        hardware=hardware_from_catalogue(hardware), arch=deepseek_r1(), version=Version(NEWEST), isl=load.isl,
        osl=load.osl, concurrency=clients,
    )  # fmt: skip


def copies(plan: Plan) -> tuple[str, float] | None:
    """Return the one-node answer's name and rate."""
    return None if plan.best is None else (plan.best.name, plan.best.output_tok_s)


if __name__ == "__main__":
    sys.exit(main())
