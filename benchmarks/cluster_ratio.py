"""Twelve launches on a real Ray cluster of three raylets, one at a time and one a node: the wall clock of both.

    python benchmarks/cluster_ratio.py --trials 12 --boot 15

The emulated engine starts in so many seconds and is measured for two a point. Prints the seconds of both runs on the
clock, the engine seconds they add up to, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.children import start_sgtune
from tests.cluster.three_nodes import ThreeNodes, three_nodes
from tests.faults.test_tune_faults import question
from tuner.evidence.trial_lines import read_trials


def run(nodes: ThreeNodes, parallel: int, trials: int, boot_s: float) -> tuple[float, float]:
    """Return the seconds on the clock and of the engines. Raises RuntimeError where a launch is missing."""
    with tempfile.TemporaryDirectory() as folder:
        command = question(Path(folder), boot_s=boot_s, trials=trials)
        command[command.index("--point-time") + 1] = "2s"
        began_s = time.monotonic()
        process = start_sgtune(*command, "--cluster", nodes.address, "--parallel", str(parallel), "--json")
        out, err = process.communicate()
        wall_s = time.monotonic() - began_s
        if process.returncode != 0:
            raise RuntimeError(err)
        launched = [record for record in read_trials(Path(folder) / "runs/a/trials.jsonl") if record.launched]
        if len(launched) != trials:
            raise RuntimeError(f"{len(launched)} launches of {trials} in the evidence")
        return wall_s, 3600.0 * float(json.loads(out)["engine_hours"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--boot", type=float, default=15.0)
    options = parser.parse_args()
    with three_nodes() as nodes:
        clocks = {parallel: run(nodes, parallel, options.trials, options.boot) for parallel in (3, 1)}
    for parallel, (wall_s, engine_s) in sorted(clocks.items()):
        print(f"{parallel} at a time: {wall_s:.0f} s on the clock, {engine_s:.0f} s of engine time")
    print(f"ratio {clocks[1][0] / clocks[3][0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
