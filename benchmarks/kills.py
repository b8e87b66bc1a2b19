"""SIGKILLs of every part of a running tune, and what they leave: processes, ports, locks, lost or changed records.

    python benchmarks/kills.py --kills 200 --seed 1
    python benchmarks/kills.py --kills 60 --engine emulated --minutes 40

Emulated engine: tuner, shim, server and load workers in turn, each some time after it was first seen. Simulated engine:
the tuner, and every finished run equals the undisturbed one line for line. After each kill the run is resumed. Prints
a row for each engine and part; exit 1 where anything was left or lost.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.left import WORKER, evidence_faults, nothing_left, still_listening

QUESTION = (
    "tune", "--hardware", "h200x8", "--sglang-version", "0.5.12", "--isl", "32", "--osl", "8", "--concurrency", "2",
    "--no-mtp", "--confirm", "0", "--run", "a",
)  # fmt: skip
TRIALS = {"emulated": 6, "simulated": 8}
WORLD = 'name = "kills"\nboot_s = 0.3\nnoise = 0.0\n'
# Parts by what their command line holds; the tuner is the process that was started.
PARTS = {"shim": "tuner.server.shim", "server": "tuner.emulator", "worker": "tuner.bench.worker"}
# How long the tune goes on after the part was seen, at most.
THEN_S = {"tuner": 8.0, "shim": 0.8, "server": 0.8, "worker": 0.3}
WAIT_S, END_S = 60.0, 900.0  # of a machine that others use, too


class Run:
    """One run of an engine, started and resumed until it is done."""

    def __init__(self, engine: str, home: Path) -> None:
        self.engine, self.home, self.folder = engine, home, home / "runs" / "a"
        world = home / "world.toml"
        world.write_text(WORLD)
        self._words = [
            *QUESTION, "--engine", engine, "--trials", str(TRIALS[engine]), "--runs", str(home / "runs"),
            *(("--world", str(world), "--point-time", "0.2s") if engine == "emulated" else ()),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        resume = ["--resume"] if (self.folder / "run.toml").exists() else []
        command = [sys.executable, "-m", "tuner.cli.main", *self._words, *resume]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)

    def lines(self) -> list[bytes]:
        file = self.folder / "trials.jsonl"
        return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def part_of(process: subprocess.Popen[bytes], part: str) -> psutil.Process | None:
    """Return a living process of this part, None where there is none."""
    try:
        tuner = psutil.Process(process.pid)
        if part == "tuner":
            return tuner
        return next((p for p in tuner.children(recursive=True) if PARTS[part] in " ".join(p.cmdline())), None)
    except psutil.Error:
        return None


def kill(process: subprocess.Popen[bytes], part: str, after_s: float) -> bool:
    """SIGKILL a part some time after it was first seen; return False where the run ended before."""
    until = time.monotonic() + WAIT_S
    while part_of(process, part) is None:
        if process.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.02)
    time.sleep(after_s)
    victim = part_of(process, part)
    if victim is None or process.poll() is not None:
        return False
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def faults_after(run: Run, lines_before: list[bytes]) -> Iterator[str]:
    """Yield what a tune that has ended, however it ended, should not have left or lost."""
    if not nothing_left():
        yield "process left"
    if still_listening(run.folder):
        yield "port left"
    yield from evidence_faults(run.folder, lines_before, run.lines())


def storm(
    engine: str, parts: tuple[str, ...], kills: int, dice: random.Random, until: float
) -> tuple[collections.Counter[str], ...]:
    """Kill parts in turn until there were so many kills or it is late; return kills by part, and faults by kind."""
    struck: collections.Counter[str] = collections.Counter()
    faults: collections.Counter[str] = collections.Counter()
    undisturbed: list[bytes] = []
    while sum(struck.values()) < kills and time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="sgtune-kills-") as home:
            run, lines_before = Run(engine, Path(home)), list[bytes]()
            disturbed = engine == "emulated" or bool(undisturbed)
            while True:
                process = run.start()
                part = parts[sum(struck.values()) % len(parts)]
                going_on = sum(struck.values()) < kills and time.monotonic() < until
                if disturbed and going_on and kill(process, part, THEN_S[part] * dice.random()):
                    struck[part] += 1
                try:
                    stderr = process.communicate(timeout=END_S)[1].decode(errors="replace")
                except subprocess.TimeoutExpired:
                    faults["hung"] += 1
                    process.kill()
                    process.communicate()
                    break
                faults.update(faults_after(run, lines_before))
                if "Traceback" in stderr or "unexpectedly" in stderr:
                    faults["traceback"] += 1
                    print(stderr[-1500:])
                lines_before = run.lines()
                if process.returncode != -9:
                    faults["exit code"] += process.returncode not in (0, 1, 3)
                    break
            if engine == "simulated":
                faults["other answer than undisturbed"] += bool(undisturbed) and lines_before != undisturbed
                undisturbed = undisturbed or lines_before
    return struck, +faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("simulated", "emulated"), help="one alone; both otherwise, 1 to 3")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="stop killing after so long, for each engine")
    options = parser.parse_args()
    os.environ[WORKER] = f"kills-{os.getpid()}"  # what else runs here is not ours to count
    dice, bad = random.Random(options.seed), 0
    parts_of: dict[str, tuple[str, ...]] = {"simulated": ("tuner",), "emulated": ("tuner", *PARTS)}
    shares = {"simulated": options.kills // 4, "emulated": options.kills - options.kills // 4}
    if options.engine is not None:
        shares = {options.engine: options.kills}
    for engine, kills in shares.items():
        parts = parts_of[engine]
        struck, faults = storm(engine, parts, kills, dice, time.monotonic() + 60.0 * options.minutes)
        bad += sum(faults.values())
        by_part = ", ".join(f"{part} {struck[part]}" for part in parts)
        print(f"{engine}: {sum(struck.values())} kills ({by_part}); faults: {dict(faults) or 'none'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
