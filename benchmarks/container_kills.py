"""SIGKILLs of every part of a tune in containers, on a real docker daemon, and what they leave or spoil.

    python benchmarks/container_kills.py --kills 30 --seed 1

Brings up a daemon of its own (root, Debian's docker.io) with an image whose server is the emulator. Tuner, shim,
docker's client, the container, the daemon, and tuner and shim together are killed in turn, each some time after it
was first seen; then the run is resumed. Prints kills by part and faults: containers, processes, ports or locks left,
records lost or changed, servers that ran side by side. Exit 1 where there is any.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.version import NEWEST
from tests.left import WORKER, evidence_faults, nothing_left, still_listening
from tests.real.dockerd import Dockerd, import_image
from tests.real.packages import install

IMAGE = f"lmsysorg/sglang:v{NEWEST}"
TRIALS = 2
QUESTION = (
    "tune", "--hardware", "h200x8", "--isl", "32", "--osl", "8", "--concurrency", "2", "--no-mtp", "--confirm", "0",
    "--trials", str(TRIALS), "--point-time", "0.2s", "--engine", "docker", "--image", IMAGE, "--run", "a",
)  # fmt: skip
SERVER_FLAGS = ("--", "--device", "cpu")  # no GPU is asked of this machine
PARTS = ("tuner", "shim", "client", "container", "tuner and shim", "daemon")
# Who goes on by itself after the kill; after the others the run is resumed.
GOES_ON = ("shim", "client", "container")
# After these nobody is left who could remove the container: it is for the next session, or the next daemon.
HANDED_ON = ("tuner and shim", "daemon")
THEN_S = 2.5  # a launch of the emulator takes about three seconds
WAIT_S, END_S = 90.0, 600.0  # of a machine that others use, too
LOOK_S = 0.1


class Watch:
    """Looks at the daemon's containers all the time: two servers at once would measure each other."""

    def __init__(self, daemon: Dockerd) -> None:
        self._daemon, self._end = daemon, threading.Event()
        self.together: set[tuple[str, ...]] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(LOOK_S):
            servers = [name for name in self._daemon.ask("ps", "--format", "{{.Names}}").stdout.split() if "-" in name]
            if len(servers) > 1:
                self.together.add(tuple(sorted(servers)))


class Run:
    """One run on the docker engine, started and resumed until it is done."""

    def __init__(self, daemon: Dockerd, home: Path) -> None:
        self.daemon, self.home, self.folder = daemon, home, home / "runs" / "a"

    def start(self) -> subprocess.Popen[bytes]:
        resume = ("--resume",) if (self.folder / "run.toml").exists() else ()
        words = [*QUESTION, "--runs", str(self.home / "runs"), *resume, *SERVER_FLAGS]
        environment = os.environ | self.daemon.environment | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "tuner.cli.main", *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)

    def lines(self) -> list[bytes]:
        file = self.folder / "trials.jsonl"
        return file.read_bytes().split(b"\n")[:-1] if file.exists() else []

    def process_of(self, tuner: subprocess.Popen[bytes], part: str) -> int | None:
        """Return the process of a part of this run, None while there is none."""
        words = {"shim": "tuner.server.shim", "client": " run --rm --name sgtune-"}.get(part, "")
        try:
            children = psutil.Process(tuner.pid).children(recursive=True) if words else []
            own = [p for p in children if words in " ".join(p.cmdline()) and (part == "shim" or not _is_shim(p))]
        except psutil.Error:
            return None
        return own[0].pid if own else None

    def container(self) -> int | None:
        """Return the first process inside the container that serves, None while none does."""
        names = self.daemon.ask("ps", "--filter", "name=sgtune-", "--format", "{{.Names}}").stdout.split()
        if not names:
            return None
        state = self.daemon.ask("inspect", "--format", "{{.State.Pid}}", names[0])
        return int(state.stdout) or None if state.returncode == 0 else None

    def strike(self, tuner: subprocess.Popen[bytes], part: str, after_s: float) -> bool:
        """SIGKILL a part some time after a container was first seen; return False where the run ended before."""
        until = time.monotonic() + WAIT_S
        while self.container() is None or self.process_of(tuner, "shim") is None:
            if tuner.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(LOOK_S)
        time.sleep(after_s)
        if part == "daemon":
            self.daemon.kill()
            return True
        pids = {
            "tuner": [tuner.pid], "container": [self.container()],
            "tuner and shim": [tuner.pid, self.process_of(tuner, "shim")],
        }.get(part, [self.process_of(tuner, part)])  # fmt: skip
        if None in pids or tuner.poll() is not None:
            return False
        for pid in pids:
            try:
                os.kill(int(pid or 0), 9)
            except ProcessLookupError:
                return False
        return True


def _is_shim(process: psutil.Process) -> bool:
    return "tuner.server.shim" in " ".join(process.cmdline())


def faults_after(run: Run, before: list[bytes], part: str) -> Iterator[str]:
    """Yield what a tune that has ended, however it ended, should not have left or lost."""
    if part not in HANDED_ON:
        until = time.monotonic() + 15.0
        while (leftover := run.daemon.containers()) and time.monotonic() < until:
            time.sleep(LOOK_S)
        if leftover:
            yield "container left"
        elif still_listening(run.folder):
            yield "port left"
    if not nothing_left():
        yield "process left"
    yield from evidence_faults(run.folder, before, run.lines())


def storm(
    daemon: Dockerd, parts: Sequence[str], kills: int, dice: random.Random
) -> tuple[collections.Counter[str], ...]:
    """Kill parts in turn until there were so many kills; return kills by part, faults, and outcomes of trials."""
    struck: collections.Counter[str] = collections.Counter()
    faults: collections.Counter[str] = collections.Counter()
    outcomes: collections.Counter[str] = collections.Counter()
    waiting = collections.deque(itertools.islice(itertools.cycle(parts), kills))
    while waiting:
        with tempfile.TemporaryDirectory(prefix="sgtune-kills-") as home, Watch(daemon) as watch:
            run = Run(daemon, Path(home))
            faults.update(_one_run(run, waiting, struck, dice))
            launched = [line for line in map(json.loads, run.lines()) if line["outcome"] != "ruled_out"]
            outcomes.update(line["outcome"] for line in launched)
            faults["trial lost"] += len(launched) != TRIALS
            faults["left at the end: container"] += bool(daemon.containers())
            faults["left at the end: port"] += bool(still_listening(run.folder))
        faults["measured beside another"] += len(watch.together)
    return struck, +faults, outcomes


def _one_run(
    run: Run, waiting: collections.deque[str], struck: collections.Counter[str], dice: random.Random
) -> Iterator[str]:
    """Yield the faults of one run, killed and resumed until it is done."""
    before: list[bytes] = []
    while True:
        tuner, hit = run.start(), False
        part = waiting.popleft() if waiting else ""
        if part:
            hit = run.strike(tuner, part, THEN_S * dice.random())
            struck[part] += hit
            waiting.extendleft([] if hit else [part])
        try:
            errors = tuner.communicate(timeout=END_S)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            tuner.kill()
            tuner.communicate()
            yield "hung"
            return
        yield from faults_after(run, before, part if hit else "")
        if "Traceback" in errors or "unexpectedly" in errors:
            yield "traceback"
            print(errors[-1500:])
        before = run.lines()
        if hit and part == "daemon":
            if tuner.returncode != 1 or "--resume" not in errors:
                yield "daemon's death not told"
                print(errors[-1500:])
            run.daemon.start()
        elif not hit or part in GOES_ON:
            if tuner.returncode not in (0, 3):
                yield "exit code"
                print(part, tuner.returncode, errors[-1500:])
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if why := install("docker", "rootfs"):
        print(why)
        return 2
    os.environ[WORKER] = f"kills-{os.getpid()}"  # what else runs here is not ours to count
    daemon = Dockerd()
    try:
        daemon.start()
        import_image(daemon, str(NEWEST))
        struck, faults, outcomes = storm(daemon, PARTS, options.kills, random.Random(options.seed))
    finally:
        daemon.close()
    by_part = ", ".join(f"{part} {struck[part]}" for part in PARTS)
    print(f"{sum(struck.values())} kills ({by_part}); faults: {dict(faults) or 'none'}; trials: {dict(outcomes)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
