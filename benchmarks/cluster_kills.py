"""Kills on a real Ray cluster: seats, servers, raylets, the tuner, the head, and seats that freeze, by seed.

    python benchmarks/cluster_kills.py --kills 40 --seed 1

Every round tunes six configurations of the emulated engine on three raylets of this machine and kills one part at a
drawn moment; a killed tuner is resumed, after the loss of the head on a new cluster. After each round: no process,
port or lock of ours is left, every trial has one record, none twice, none without figures because its nodes were lost,
and the run has its answer. Prints a line a round and the sums.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.children import start_sgtune
from tests.cluster.test_ray import TRIALS, asked, launched, seats
from tests.cluster.three_nodes import ThreeNodes, three_nodes
from tests.left import evidence_faults, nothing_left, still_listening
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.seam import FailureKind

PARTS = ("seat", "server", "raylet", "tuner", "frozen seat", "head")
ROUND_S = 400.0
TOO_LATE = "nothing was struck"


@dataclass(frozen=True, slots=True)
class Round:
    """What was killed when, and what came of it: empty where all held."""

    part: str
    after_s: float
    outcomes: str
    wrong: str


def play(part: str, after_s: float, nodes: ThreeNodes, folder: Path, dice: random.Random) -> Round:
    """Tune, kill one part after so many seconds, resume a killed tuner, and look at what is left."""
    process = start_sgtune(*asked(folder, nodes))
    time.sleep(after_s)
    struck = _strike(part, process.pid, nodes, dice)
    out, err = process.communicate(timeout=ROUND_S)
    if part in ("tuner", "head") and struck and process.returncode != 0:
        if not nothing_left(60.0 if part == "head" else 15.0):
            return Round(part, after_s, "", f"a process is left after the {part}")
        resume = ["--resume"] if (folder / "runs/a/run.toml").exists() else []
        with three_nodes() if part == "head" else nullcontext(nodes) as cluster_nodes:
            process = start_sgtune(*asked(folder, cluster_nodes, *resume))
            out, err = process.communicate(timeout=ROUND_S)
    if process.returncode != 0:
        return Round(part, after_s, "", f"exit {process.returncode}: {err[-300:]}")
    records = launched(folder)
    outcomes = ", ".join(f"{count} {name}" for name, count in Counter(map(_outcome, records)).items())
    wrong = [
        text
        for text, bad in (
            (TOO_LATE, not struck),
            ("a process is left", not nothing_left()),
            ("a port is left", still_listening(folder / "runs/a")),
            ("a lock is left", any(evidence_faults(folder / "runs/a", [], []))),
            (f"{len(records)} records of {TRIALS}", len(records) != TRIALS),
            ("a number twice", len({record.number for record in records}) != len(records)),
            ("a trial lost to its node", any(record.failure is FailureKind.NODE_LOST for record in records)),
            ("no answer", json.loads(out)["best"] is None),
        )
        if bad
    ]
    return Round(part, after_s, outcomes, "; ".join(wrong))


def _outcome(record: TrialRecord) -> str:
    return str(record.outcome) if record.outcome is TrialOutcome.MEASURED else f"{record.outcome} ({record.reason})"


def _strike(part: str, tuner: int, nodes: ThreeNodes, dice: random.Random) -> bool:
    """Kill one part; say whether there was one."""
    if part == "tuner":
        psutil.Process(tuner).kill()
        return True
    if part == "head":
        nodes.end_the_head()
        return True
    if part == "raylet":
        if not nodes.raylets:
            return False
        nodes.end_a_raylet()
        return True
    until = time.monotonic() + 60.0
    while not (running_seats := seats()) and time.monotonic() < until:
        time.sleep(0.1)
    if not running_seats:
        return False
    seat = dice.choice(running_seats)
    if part == "server":
        children = seat.children(recursive=True)
        if not children:
            return _strike("seat", tuner, nodes, dice)
        dice.choice(children).kill()
        return True
    seat.send_signal(signal.SIGSTOP if part == "frozen seat" else signal.SIGKILL)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    rounds: list[Round] = []
    while len(rounds) < options.kills:
        with three_nodes() as nodes:  # a cluster lives until it has lost both raylets beside the head
            while len(rounds) < options.kills:
                part = PARTS[len(rounds) % len(PARTS)]
                if part == "raylet" and not nodes.raylets:
                    break
                with tempfile.TemporaryDirectory() as folder:
                    rounds.append(play(part, dice.uniform(3.0, 25.0), nodes, Path(folder), dice))
                last = rounds[-1]
                print(f"{len(rounds):3} {last.part} after {last.after_s:.1f} s: {last.outcomes} {last.wrong or 'held'}")
                sys.stdout.flush()
                if last.wrong == TOO_LATE:  # the run had ended before the moment: the same part at another one
                    rounds.pop()
                if part == "head":
                    break
    bad = [item for item in rounds if item.wrong]
    print(f"{len(rounds)} kills ({dict(Counter(item.part for item in rounds))}), {len(bad)} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
