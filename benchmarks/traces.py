"""What a long trace costs: read and summarised, and replayed with a radix cache.

    python benchmarks/traces.py [--requests 1000000] [--replayed 100000]

Writes a trace of chats behind seven system prompts (13 blocks a prompt on average), runs `sgtune traffic` on it and
replays its first requests on R1, TP8 on eight H200; prints CPU seconds and the most memory of each.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from models.architecture import deepseek_r1
from models.serving.trace_replay import replay_trace
from models.version import NEWEST, parse_version
from planner.check.judge import check_arguments
from planner.inputs import read_hardware
from planner.plans.make import PlanQuestion
from planner.traffic_plans.served import servers_of
from tuner.trace_files.read import read_trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replayed", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write(path, options.requests)
        subprocess.run([sys.executable, "-m", "tuner.cli.main", "traffic", str(path), "--json"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{options.requests:,} requests, {path.stat().st_size / 1e6:,.0f} MB: summarised in "
              f"{used.ru_utime + used.ru_stime:.1f} CPU s and {used.ru_maxrss / 1024:,.0f} MiB")  # fmt: skip
        trace = read_trace(path)
    trace = trace.taken(np.arange(min(options.replayed, len(trace)))).scaled(0.1)
    arch, version = deepseek_r1(), parse_version(NEWEST)
    question = PlanQuestion(
        hardware=read_hardware("h200x8"), arch=arch, version=version, isl=1, osl=1, concurrency=1
    )  # fmt: skip
    context = question.context()
    words = ["--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8"]
    config = check_arguments(words, arch, context.machine, version).resolved.config
    servers = servers_of(context, config, len(trace))
    began = time.process_time()
    replay = replay_trace(trace, servers)
    print(f"{len(trace):,} requests replayed with a radix cache in {time.process_time() - began:.1f} CPU s, "
          f"{replay.hit_rate:.1%} hit")  # fmt: skip


def write(path: Path, requests: int) -> None:
    """Write 20 requests a second of 60,000 users, each prompt two blocks longer than the user's last."""
    rng, past, now_ms = random.Random(1), dict[int, list[int]](), 0.0
    with path.open("w", encoding="utf-8") as out:
        for number in range(requests):
            now_ms += rng.expovariate(20) * 1e3
            user = rng.randrange(60_000)
            ids = past.get(user, [])
            ids = [*(ids if 0 < len(ids) <= 24 else [user % 7, user % 7 + 100]), 4 * number + 1000, 4 * number + 1001]
            past[user] = ids
            row = {"timestamp": int(now_ms), "input_length": len(ids) * 512 - rng.randrange(512),
                   "output_length": rng.randrange(1, 800), "hash_ids": ids}  # fmt: skip
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
