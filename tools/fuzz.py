"""Throws mutated files, options, run folders and a hostile server at every command, and says what did not end well.

    python tools/fuzz.py --seconds 60 --seed 7            as long as that
    python tools/fuzz.py --cases 20000 --seed 7          so many cases (--first 1 --step 2: every second one)
    python tools/fuzz.py --seed 7 --only 1234             one case again, with its output

Every case is a process of its own, forked from one that has loaded sgtune. It must end within 20 s of its own time (60
by the clock, on a busy machine), in at most 700 MiB, with exit code 0, 1, 2, 3 or 130, and print no traceback and no
"failed unexpectedly". Exit 1 when any does not.
"""

from __future__ import annotations

import argparse
import collections
import gc
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from fuzz_cases import Maker, Seeds
from fuzz_process import run_case

# What a command imports late; a case forked with all of it starts in milliseconds.
LATE = ("aiohttp", "optuna", "scipy.stats", "sklearn.gaussian_process", "yaml")
PACKAGES = ("hwprobe", "models", "planner", "tuner", "dashboard.readers")


def load_all() -> None:
    """Import all that commands import, before any case is forked."""
    for name in LATE:
        importlib.import_module(name)
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.collect()
    gc.freeze()


def fuzz(options: argparse.Namespace, folder: Path, port: int) -> int:
    """Run cases until the time or the number is used up; return how many did not end well."""
    load_all()
    seeds = Seeds(Path(tempfile.mkdtemp(dir=folder, prefix="seeds-")))
    maker = Maker(seeds, options.seed, port)
    counts: collections.Counter[tuple[str, object]] = collections.Counter()
    bad, slowest, largest, cases_run = 0, 0.0, 0.0, 0
    began, number = time.monotonic(), options.first
    while (number < options.cases) if options.cases else (time.monotonic() - began < options.seconds):
        place = Path(tempfile.mkdtemp(dir=folder, prefix="case-"))
        case = maker.case(number if options.only is None else options.only, place)
        ended = run_case(case, place)
        counts[case.words[0], ended.code] += 1
        slowest, largest, cases_run = max(slowest, ended.seconds), max(largest, ended.mib), cases_run + 1
        if ended.problem or options.only is not None:
            bad += bool(ended.problem)
            print(f"case {case.number} (seed {options.seed}): {ended.problem}\n  sgtune {' '.join(case.words)[:600]!r}")
            print("  " + ended.said[-1500 if options.only is None else -20_000 :].replace("\n", "\n  "), flush=True)
        shutil.rmtree(place, ignore_errors=True)
        number += options.step
        if cases_run % 1000 == 0:
            print(f"{cases_run} cases in {time.monotonic() - began:.0f} s, {bad} bad", flush=True)
        if options.only is not None:
            break
    for (command, code), count in sorted(counts.items(), key=str):
        print(f"{command:<12} exit {code}: {count}")
    print(f"{cases_run} cases, {bad} bad; the slowest took {slowest:.1f} s, the largest {largest:.0f} MiB", flush=True)
    return bad


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args(arguments)
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "tools" / "hostile_server.py"), "--seed", str(options.seed)]
    with tempfile.TemporaryDirectory(prefix="sgtune-fuzz-") as folder, subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            bad = fuzz(options, Path(folder), int(server.stdout.readline()))
        finally:
            server.kill()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
