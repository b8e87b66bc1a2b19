#!/usr/bin/env python3
"""How long each command takes from a fresh process to its end: cold start, on this machine.

    python benchmarks/cold_start.py                 every command, 7 times
    python benchmarks/cold_start.py --assert        exit 1 beyond 0.4 s for `--help`, 1.0 for `plan`, 3.0 for `--users`
    python benchmarks/cold_start.py plan check      only these

Every run is a new process in an empty folder. Files are in the page cache and Python's bytecode is there, as it is from
the second run on: each command runs once before it is timed, without PYTHONDONTWRITEBYTECODE. A promise is judged by
the least of the runs, as whatever else the machine does can only add.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import ROOT, Ran, machine, run, sgtune

ROUNDS = 7
QUESTION = ("--hardware", "nf5688g7", "--isl", "1000", "--osl", "1000", "--concurrency", "1024")
USERS = ("--hardware", "nf5688g7", "--isl", "1000", "--osl", "1000", "--users", "3000", "--min-user-tok-s", "20")
LIBRARIES = "import numpy, typer, rich.console, msgspec, packaging.version"
POINTS = str(ROOT / "models" / "data" / "published_points.jsonl")
LAUNCH = ("python3", "-m", "sglang.launch_server", "--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "plan": ("plan", *QUESTION),
    "plan --users": ("plan", *USERS),
    "check": ("check", *QUESTION, "--", *LAUNCH),
    "predict": ("predict", "--points", POINTS, "--out", "predicted.jsonl"),
    "export": ("export", "--plan", "{plan}", "--target", "all", "--out", "exports"),
    "tune": ("tune", *QUESTION, "--engine", "simulated", "--trials", "1"),
    "doctor": ("doctor",),
}
LIMITS_S = {"--help": 0.4, "plan": 1.0, "plan --users": 3.0}


def timed(words: tuple[str, ...], rounds: int) -> list[Ran]:
    """Run a command once and then `rounds` times, each in an empty folder; return those. Raises SystemExit."""
    runs = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(words, cwd=Path(folder)))
        if runs[-1].code:
            raise SystemExit(f"{' '.join(words)} ended with {runs[-1].code}:\n{runs[-1].out[-2000:]}")
    return runs[1:]


def row(name: str, runs: list[Ran], bare_s: float, limit_s: float | None) -> str:
    """Return one line of the table; `bare_s` is what a bare import takes of a core."""
    walls, spent = [r.wall_s for r in runs], [r.cpu_s for r in runs]
    cells = (f"`{name}`", f"{statistics.median(walls):.2f}", f"{min(walls):.2f}", f"{statistics.median(spent):.2f}",
             f"{min(spent):.2f}", f"{min(spent) / bare_s:.1f}", f"{limit_s:.1f}" if limit_s else "")  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def too_slow(least_s: dict[str, float]) -> list[str]:
    """Return a sentence for each command that takes longer than promised."""
    return [
        f"sgtune {name} takes {least_s[name]:.2f} s, {limit:.1f} s are promised"
        for name, limit in LIMITS_S.items()
        if least_s.get(name, 0.0) > limit
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS).replace("--help", "help"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--assert", dest="judge", action="store_true", help="exit 1 when a promise is not kept")
    options = parser.parse_args()
    names = ["--help" if word == "help" else word for word in options.commands] or list(COMMANDS)
    if unknown := set(names) - set(COMMANDS):
        parser.error(f"no such command: {', '.join(sorted(unknown))}")
    print(machine())
    print("| command | wall s, median | least | CPU s, median | least | times a bare import | promised |")
    print("|---|---|---|---|---|---|---|")
    imports = timed((sys.executable, "-c", LIBRARIES), options.rounds)
    bare_s, least_s = min(r.cpu_s for r in imports), {}
    print(row(f'python -c "{LIBRARIES}"', imports, bare_s, None), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        if "export" in names:
            run([sgtune(), *COMMANDS["plan"], "--out", str(plan)], cwd=Path(folder))
        for name in names:
            runs = timed((sgtune(), *(word.format(plan=plan) for word in COMMANDS[name])), options.rounds)
            least_s[name] = min(r.wall_s for r in runs)
            print(row(f"sgtune {name}", runs, bare_s, LIMITS_S.get(name)), flush=True)
    failures = too_slow(least_s)
    print("\n".join(failures) or "every promise kept")
    return int(bool(failures) and options.judge)


if __name__ == "__main__":
    sys.exit(main())
