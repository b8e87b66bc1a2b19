#!/usr/bin/env python3
"""The same question planned by sgtune and by NVIDIA's AIConfigurator: what each answers, and how long it takes.

    python benchmarks/plan_peer.py              all runs (AIConfigurator's default run takes one to two minutes)
    python benchmarks/plan_peer.py --quick      without that run: its aggregated mode, which is sgtune's question

DeepSeek-R1 on 8 x H200, SGLang 0.5.14 (what AIConfigurator 0.12's database holds), 1,000 tokens in and out, 1,024
clients. AIConfigurator is asked for the most tokens under 100 ms per token and 30 s to the first one, and has no number
of clients on a fixed machine: its row here is the best of its frontier with no more than 1,024 requests at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import Peer, Ran, machine, run, say, sgtune

PEER = Peer(name="aiconfigurator", version="0.12.0")
CLIENTS = 1024
QUESTION = ("--isl", "1000", "--osl", "1000")
PLAN = (
    "plan",
    "--hardware",
    "h200x8",
    *QUESTION,
    "--concurrency",
    str(CLIENTS),
    "--sglang-version",
    "0.5.14",
    "--json",
)
ROUNDS = 5  # of sgtune, whose run is short enough to be disturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best configuration of a planner and what it promises: tokens per second in all and per user, ms."""

    layout: str
    tok_s: float
    user_tok_s: float
    ttft_ms: float
    tpot_ms: float
    considered: str


def sgtune_answer(text: str) -> Answer:
    """Read the JSON document of `sgtune plan --json`."""
    plan = json.loads(text.strip().splitlines()[-1])
    best, answer = plan["candidates"][0], plan["answer"]
    return Answer(
        layout=best["label"],
        tok_s=answer["output_tok_s"],
        user_tok_s=answer["user_tok_s"],
        ttft_ms=answer["ttft_ms"]["mean"],
        tpot_ms=answer["tpot_ms"]["mean"],
        considered=f"{plan['evaluated']:,} configurations",
    )


def peer_answer(frontier: str, clients: int) -> Answer:
    """Read AIConfigurator's pareto.csv: most tokens of the rows with no more than `clients` requests at once.

    Raises ValueError when no row has so few.
    """
    rows = [row for row in csv.DictReader(frontier.splitlines()) if float(row["concurrency"]) <= clients]
    best = max(rows, key=lambda row: float(row["tokens/s"]))
    return Answer(
        layout=f"{best['parallel']}, {float(best['concurrency']):,.0f} at once, KV {best['kvcache']}",
        tok_s=float(best["tokens/s"]),
        user_tok_s=float(best["tokens/s/user"]),
        ttft_ms=float(best["ttft"]),
        tpot_ms=float(best["tpot"]),
        considered=f"{len(rows)} of its frontier",
    )


def row(name: str, wall_s: float, cpu_s: float, answer: Answer | None) -> str:
    """Return one line of the table."""
    figures = ("-",) * 6
    if answer is not None:
        figures = (answer.layout, f"{answer.tok_s:,.0f}", f"{answer.user_tok_s:.1f}", f"{answer.tpot_ms:.1f}",
                   f"{answer.ttft_ms:,.0f}", answer.considered)  # fmt: skip
    return "| " + " | ".join((name, f"{wall_s:.2f}", f"{cpu_s:.2f}", *figures)) + " |"


def plan(*more: str) -> str:
    """Run sgtune's plan and return its row: medians of wall and CPU seconds."""
    words = [sgtune(), *PLAN, *more]
    say(shlex.join(["sgtune", *words[1:]]))
    runs = [checked(run(words)) for _ in range(ROUNDS + 1)][1:]  # the first may compile and read from disk
    wall, cpu = (statistics.median(figures) for figures in zip(*((r.wall_s, r.cpu_s) for r in runs), strict=True))
    return row(" ".join(("sgtune plan", *more)), wall, cpu, sgtune_answer(runs[-1].out))


def configure(command: str, name: str, *more: str) -> str:
    """Run AIConfigurator's `cli default` and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        words = [command, "cli", "default", "--model-path", "deepseek-ai/DeepSeek-R1", "--total-gpus", "8",
                 "--system", "h200_sxm", "--backend", "sglang", *QUESTION, "--ttft", "30000", "--tpot", "100",
                 *more, "--save-dir", folder]  # fmt: skip
        say(shlex.join([PEER.name, *words[1:]]))
        ran = checked(run(words))
        frontiers = sorted(Path(folder).rglob("agg/pareto.csv"))
        answer = peer_answer(frontiers[0].read_text(), CLIENTS) if frontiers else None
    return row(name, ran.wall_s, ran.cpu_s, answer)


def estimate(command: str) -> str:
    """Run AIConfigurator's prediction of one given configuration and return its row, without an answer."""
    words = [command, "cli", "estimate", "--model-path", "deepseek-ai/DeepSeek-R1", "--system", "h200_sxm",
             "--backend", "sglang", *QUESTION, "--tp", "1", "--dp", "8", "--etp", "1", "--ep", "8",
             "--batch-size", str(CLIENTS // 8)]  # fmt: skip
    say(shlex.join([PEER.name, *words[1:]]))
    ran = checked(run(words))
    return row("aiconfigurator cli estimate (one point)", ran.wall_s, ran.cpu_s, None)


def checked(ran: Ran) -> Ran:
    """Return a run that succeeded. Raises SystemExit with its last words when it did not."""
    if ran.code:
        raise SystemExit(f"exit code {ran.code}:\n{ran.out[-2000:]}")
    return ran


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without AIConfigurator's default run")
    options = parser.parse_args()
    command = PEER.command()
    print(machine())
    rows = [plan(), plan("--no-mtp"), configure(command, "aiconfigurator cli default, agg", "--serving-mode", "agg")]
    if not options.quick:
        rows.append(configure(command, "aiconfigurator cli default"))
    rows.append(estimate(command))
    print("| planner | wall s | CPU s | best layout | tok/s | per user | TPOT ms | TTFT ms | considered |")
    print("|" + "---|" * 9)
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
