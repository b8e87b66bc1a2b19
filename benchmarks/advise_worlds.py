#!/usr/bin/env python3
"""`sgtune advise` against servers with one thing wrong each, and against one with nothing wrong.

    python benchmarks/advise_worlds.py                     the ten worlds in virtual time, a second each
    python benchmarks/advise_worlds.py --live              the same as processes in real time, asked over HTTP
    python benchmarks/advise_worlds.py --random 5 --seed 1 five of each kind, drawn: machine, lengths, load, degree

Printed are what was wrong, the first finding, its predicted gain and what else was found. Exit code 1 when fewer than
nine of ten first findings are right, or when anything is found where nothing is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

import msgspec

from models.workload import Slo
from planner.check.judge import check_arguments
from planner.inputs import read_question
from tuner.advise.look import AdviseAnswer, AdviseQuestion, look
from tuner.emulator.boot import EmulatedMachine
from tuner.emulator.virtual import VirtualServer
from tuner.engines.world import SlowRank, World
from tuner.scrape.samples import ScrapeWindow, read_samples
from tuner.scrape.source import Facts
from tuner.server.ask import NO_ANSWER, HttpRequest, ask
from tuner.server.ports import Ports

MODEL = ("--model-path", "deepseek-ai/DeepSeek-R1", "--trust-remote-code", "--enable-metrics")
DP = "--tp 8 --attn-dp-size 8"
DEEPEP = f"{DP} --moe-a2a-backend deepep --expert-balancedness-report-mode prometheus"
NOTHING = "nothing"
RIGHT_OF_TEN = 9


def mtp(steps: int) -> str:
    """Return the flags of a chain of drafts."""
    return (
        f"--speculative-algorithm EAGLE --speculative-num-steps {steps} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {steps + 1}"
    )


@dataclass(frozen=True)
class Case:
    """A server, its world and its clients. `kind` is the finding that is right, NOTHING where there is none."""

    kind: str
    name: str
    line: str
    clients: int = 32
    isl: int = 1000
    osl: int = 200
    shared: int = 0
    hardware: str = "h200x8"
    world: World = field(default_factory=lambda: World(noise=0.015, boot_s=0.5))
    warm_s: float = 60.0

    @property
    def words(self) -> list[str]:
        return [*MODEL, *self.line.split()]

    def prompts(self, seed: int) -> Callable[[int], tuple[tuple[int, ...] | int, int]]:
        """Return prompts of 0.8 to 1 times the lengths; with `shared` leading tokens alike, as ids."""
        dice = random.Random(seed)

        def prompt(number: int) -> tuple[tuple[int, ...] | int, int]:
            isl, osl = (dice.randint(int(0.8 * length), length) for length in (self.isl, self.osl))
            if not self.shared:
                return isl, osl
            own = (dice.randrange(30_000) for _ in range(max(1, isl - self.shared)))
            return (*range(self.shared), *own), osl

        return prompt


def world(**changes: object) -> World:
    """Return a world that is as believed but for this."""
    return replace(World(noise=0.015, boot_s=0.5), **changes)  # type: ignore[arg-type]


CASES = (
    Case("graphs_too_small", "graphs too small", "--tp 8 --cuda-graph-max-bs-decode 8", clients=48),
    Case("chunk_too_large", "chunk too large", "--tp 8 --chunked-prefill-size 32768", 120, 6000, 400, warm_s=200.0),
    Case("mtp_does_not_pay", "MTP that accepts nothing", f"--tp 8 {mtp(3)}", world=world(acceptance=0.0)),
    Case("kv_full", "KV full and retracting", "--tp 8 --mem-fraction-static 0.66", 100, 2000, 1000, warm_s=200.0),
    Case("slow_rank", "one slow rank", DP, 64, world=world(slow_rank=SlowRank(rank=3, factor=1.4))),
    Case("max_running_too_low", "queue for want of running requests", "--tp 8 --max-running-requests 16", 64),
    Case("radix_cache_off", "radix cache off, shared prefixes", "--tp 8 --disable-radix-cache", 32, 3500, 150, 2000),
    Case("recv_interval_too_long", "interval 30, few users", "--tp 8 --scheduler-recv-interval 30", 4, osl=300),
    Case("experts_unbalanced", "unbalanced experts", DEEPEP, 128, world=world(expert_balance=0.45)),
    Case(NOTHING, "nothing wrong", "--tp 8"),
)


def drawn(case: Case, dice: random.Random) -> Case:
    """Return another server of the same kind: machine, lengths, load and degree of what is wrong are drawn."""
    lengths = {"isl": dice.choice([500, 1000, 3000]), "osl": dice.choice([100, 200, 500])}
    changes: dict[str, object] = {**lengths, "clients": dice.choice([8, 16, 32, 64])}
    hopper = dice.choice(["h200x8", "h20-3ex8"])
    anywhere = {"hardware": dice.choice(["h200x8", "h20-3ex8", "b200x8"])}
    by_kind: dict[str, Callable[[], dict[str, object]]] = {
        "graphs_too_small": lambda: {"line": f"--tp 8 --cuda-graph-max-bs-decode {dice.choice([1, 2, 4])}", "isl": 500,
                                     "clients": dice.choice([16, 24, 48])},
        "chunk_too_large": lambda: {"line": f"--tp 8 --chunked-prefill-size {dice.choice([32768, 40960])}", "osl": 400,
                                    "isl": dice.choice([4000, 6000]), "clients": dice.choice([120, 160])},
        "mtp_does_not_pay": lambda: {"line": f"--tp 8 {mtp(dice.choice([1, 2, 3]))}", "hardware": hopper,
                                     "world": world(acceptance=dice.choice([0.0, 0.04, 0.08])), "isl": 500},
        "kv_full": lambda: {"line": f"--tp 8 --mem-fraction-static {dice.choice([0.64, 0.66, 0.7])}", "osl": 800,
                            "isl": dice.choice([2000, 4000]), "clients": dice.choice([100, 150])},
        "slow_rank": lambda: {**anywhere, "world": world(slow_rank=SlowRank(
            rank=dice.randrange(8), factor=dice.choice([1.2, 1.4, 1.8])))},
        "max_running_too_low": lambda: {**anywhere, "line": f"--tp 8 --max-running-requests {dice.choice([8, 16, 24])}",
                                        "clients": dice.choice([48, 64, 96]), "isl": 500},
        "radix_cache_off": lambda: {"isl": dice.choice([2500, 4500]), "osl": dice.choice([100, 200]), "shared": 2000,
                                    "hardware": hopper},
        "recv_interval_too_long": lambda: {**anywhere, "clients": dice.choice([2, 4, 6])},
        "experts_unbalanced": lambda: {"world": world(expert_balance=dice.choice([0.3, 0.45, 0.6])),
                                       "clients": dice.choice([32, 64, 128])},
        NOTHING: lambda: {**anywhere, "line": dice.choice(["--tp 8", DP, "--tp 8 --ep-size 8"])},
    }  # fmt: skip
    return replace(case, **{**changes, **by_kind[case.kind]()})  # type: ignore[arg-type]


def scraped(
    case: Case, seed: int = 0, *, window_s: float = 60.0, release: str = "0.5.23"
) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Play a case in virtual time; return /metrics at both ends of a window, /server_info and /v1/loads."""
    question = read_question(
        hardware=case.hardware, model=None, sglang_version=release, slo=None, profile=None, isl=1, osl=1, concurrency=1
    )
    context = question.context()
    checked = check_arguments(case.words, context.arch, context.machine, context.version)
    machine = EmulatedMachine(
        context=context, world=case.world, checked=checked, faults=(), seed=seed, typed=tuple(case.words)
    )
    server, prompts = VirtualServer(machine), case.prompts(seed)
    server.play(prompts, case.clients, case.warm_s)
    before = server.metrics()
    server.play(prompts, case.clients, window_s)
    return before, server.metrics(), server.server_info(), server.loads()


def played(
    case: Case, seed: int = 0, *, window_s: float = 60.0, release: str = "0.5.23", slos: tuple[Slo, ...] = ()
) -> AdviseAnswer:
    """Play a case in virtual time and look at it as `sgtune advise` would."""
    before, after, info, loads = scraped(case, seed, window_s=window_s, release=release)
    window = ScrapeWindow(before=read_samples(before, 0.0), after=read_samples(after, window_s))
    facts = Facts(name="server", info=info, loads=loads, engine="SGLang")
    return look([(facts, window)], AdviseQuestion(slos=slos))


def wait_until_ready(port: int) -> None:
    """Wait for a server to answer /ready. Raises TimeoutError after two minutes."""
    until = time.monotonic() + 120.0
    while time.monotonic() < until:
        with suppress(*NO_ANSWER):
            if ask(HttpRequest(host="127.0.0.1", port=port, method="GET", path="/ready"), 2.0)[0] == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(f"no server at port {port}")


@contextmanager
def running(case: Case, folder: Path) -> Iterator[str]:
    """Run a case's server as a process of its own; yield its address."""
    file, port = folder / "world.toml", Ports().next()
    import tomli_w

    fields = msgspec.to_builtins(case.world)
    file.write_text(tomli_w.dumps({name: value for name, value in fields.items() if value is not None}))
    command = [sys.executable, "-m", "tuner.emulator", "--hardware", case.hardware, "--world", str(file), "--",
               *case.words, "--port", str(port)]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=HOME)
    try:
        wait_until_ready(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def live(case: Case, window_s: float = 30.0) -> dict[str, object]:
    """Run a case in real time under `sgtune bench`, and return what `sgtune advise --json` says of it."""
    sgtune = str(Path(sys.executable).parent / "sgtune")
    with tempfile.TemporaryDirectory() as name, running(case, Path(name)) as url:
        load = subprocess.Popen(
            [sgtune, "bench", "--url", url, "--isl", str(case.isl), "--osl", str(case.osl), "--range-ratio", "0.8",
             "--concurrency", str(case.clients), "--shared-prefix", str(case.shared), "--point-time", "20m",
             "--duration", "20m"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            time.sleep(30.0 if case.warm_s <= 60.0 else 75.0)
            command = [sgtune, "advise", "--url", url, "--watch", f"{window_s:g}s", "--json"]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        finally:
            load.terminate()
            load.wait(60)
    document: dict[str, object] = json.loads(answer.stdout)
    return document


def main(arguments: list[str]) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a world's name")
    options = parser.parse_args(arguments)
    dice = random.Random(options.seed)
    cases = [case for case in CASES if options.only in case.name]
    if options.random:
        cases = [drawn(case, dice) for _ in range(options.random) for case in cases]
    right, invented = 0, 0
    for number, case in enumerate(cases):
        if options.live:
            findings = [(str(f["kind"]), float(f["gain_percent"])) for f in live(case)["findings"]]  # type: ignore[attr-defined]
        else:
            findings = [(str(f.kind), f.gain_percent) for f in played(case, options.seed + number).findings]
        first = findings[0][0] if findings else NOTHING
        right += first == case.kind
        invented += case.kind == NOTHING and bool(findings)
        gain = f"{findings[0][1]:+5.0f} %" if findings else "       "
        others = ", ".join(kind for kind, _ in findings[1:])
        mark = (
            "" if first == case.kind else f"  WRONG: {case.line} {case.hardware} {case.clients} {case.isl}/{case.osl}"
        )
        print(f"{case.name:36} {first:24} {gain}  {others}{mark}", flush=True)
    needed = RIGHT_OF_TEN * len(cases) / len(CASES) if not options.only else len(cases)
    print(f"{right} of {len(cases)} first findings are right; {invented} invented where nothing is wrong")
    return 0 if right >= needed and not invented else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
