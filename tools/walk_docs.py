#!/usr/bin/env python3
"""Walk the pages a newcomer reads: every command as printed, and what a page shows against what is printed.

    python tools/walk_docs.py              all that needs neither a GPU nor a network
    python tools/walk_docs.py --quick      without tuning runs and what needs their folders
    python tools/walk_docs.py docs/how-to.md

A block that follows commands is what they print: each of its lines is looked for, words alike and figures within 3 %
(10 % where time itself was measured). `...` stands for lines or words left out; a comment "X first" behind a command
names the best layout. Commands run in a folder of their own, one after the other. Exit code 1 when one fails or a line
is not printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/tutorial.md", "docs/without-gpus.md", "docs/how-to.md")
TOLERANCE, MEASURED_TOLERANCE = 0.03, 0.10
WIDE, NARROW = 160, 100
LONGEST_S = 600.0
# What is not run, and why: the first that matches.
ELSEWHERE = (
    (r"git clone|pip install|dev\.py (?:flags|oracle|sglang-cpu)|\.sglang/|real-launch", "needs the network"),
    (r"--engine (?:local|docker)|sgtune probe|hardware\.json|launch/ --engine local|dev\.py sglang-cpu", "needs GPUs"),
    (r"--url|bench_serving\.jsonl|mine\.toml|here\.json|prompts\.json|runs?[/ ]h200x8-", "needs files of your own"),
    (r"dev\.py test|sgtune dashboard|dev\.py install", "does not end, or is the tests themselves"),
)  # fmt: skip
SLOW = re.compile(r"sgtune (?:tune|verify)|--run \S|--emulated")
NUMBER = re.compile(r"(?<![A-Za-z\d.])[-+]?\d[\d,]*(?:\.\d+)?")
SHIM = """#!{python}
import sys
import tuner.cli.common.terminal as terminal
terminal.PIPED_COLUMNS = {columns}
from tuner.cli.main import main
sys.argv[0] = "sgtune"
main()
"""
NOT_MET = 3


@dataclass(frozen=True, slots=True)
class Step:
    """Commands of one block, and the lines the page shows after them."""

    page: str
    commands: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def columns(self) -> int:
        return NARROW if self.shown and max(map(len, self.shown)) <= NARROW else WIDE


def steps(page: Path) -> Iterator[Step]:
    """Yield the blocks of commands of a page, each with the block of output that follows before the next."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    name = page.relative_to(ROOT).as_posix()
    for place, (language, text) in enumerate(blocks):
        if language != "sh":
            continue
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
        after = blocks[place + 1] if place + 1 < len(blocks) else ("sh", "")
        shown = tuple(after[1].strip("\n").splitlines()) if after[0] == "" else ()
        yield Step(name, tuple(lines), shown)


def why_not(command: str, *, quick: bool) -> str | None:
    """Say why a command is not run here, None when it is."""
    why = next((reason for pattern, reason in ELSEWHERE if re.search(pattern, command)), None)
    return why or ("slow" if quick and SLOW.search(command) else None)


def compare(shown: tuple[str, ...], printed: str, tolerance: float) -> list[str]:
    """Return the shown lines that were not printed."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    missing = []
    for line in shown:
        start, cut, _ = " ".join(line.split()).partition("...")
        if start and not any(alike(start.rstrip(), each, cut=bool(cut), tolerance=tolerance) for each in lines):
            missing.append(line)
    return missing


def alike(shown: str, printed: str, *, cut: bool, tolerance: float) -> bool:
    """Say whether two lines have the same words, and figures that differ by no more than the tolerance."""
    words, other = NUMBER.sub("#", shown), NUMBER.sub("#", printed)
    if not (other.startswith(words) if cut else other == words):
        return False
    figures, others = (list(map(number, NUMBER.findall(text))) for text in (shown, printed))
    pairs = zip(figures, others, strict=False)  # a line that is cut has fewer
    return all(abs(a - b) <= max(tolerance * abs(a), 1.0 if abs(a) < 20 else 0.0) for a, b in pairs)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def run_step(step: Step, folder: Path, *, quick: bool) -> tuple[list[str], bool]:
    """Run what can be run of a step; return what was printed or said, and whether all is as the page has it."""
    shim = folder / "bin" / "sgtune"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(SHIM.format(python=sys.executable, columns=step.columns), encoding="utf-8")
    shim.chmod(0o755)
    report, printed, sound, ran_all = [], "", True, True
    for command in step.commands:
        why = why_not(command, quick=quick)
        if why is not None:
            report.append(f"skipped ({why}): {command}")
            ran_all = False
            continue
        typed = re.sub(r"(?:python3 dev\.py |\.venv/bin/)sgtune", "sgtune", command)
        began = time.monotonic()
        process = subprocess.run(
            ["bash", "-c", typed], cwd=folder, capture_output=True, text=True, check=False, timeout=LONGEST_S,
            env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        printed += process.stdout + process.stderr
        first = re.search(r"# *(\S.*?) first", command)
        best = re.search(r"1\*? +│ +(\S.*?) +│", process.stdout)
        wrong = process.returncode not in (0, NOT_MET) or bool(first and (best is None or best[1] != first[1]))
        sound = sound and not wrong
        note = f"FAILED ({process.returncode})" if wrong else "ran"
        report.append(f"{note} in {time.monotonic() - began:.1f} s: {command}")
        if wrong:
            report.append(process.stderr.strip()[-500:] or process.stdout.strip()[:500])
    if step.shown and ran_all:
        measured = any("emulated" in command for command in step.commands)
        missing = compare(step.shown, printed, MEASURED_TOLERANCE if measured else TOLERANCE)
        report += [f"NOT PRINTED: {line}" for line in missing]
        sound = sound and not missing
    return report, sound


def walk(pages: list[Path], *, quick: bool) -> bool:
    """Walk the pages in one folder; say what was done and return whether all is as they have it."""
    sound = True
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "examples").symlink_to(ROOT / "examples")
        for page in pages:
            for step in steps(page):
                report, step_sound = run_step(step, folder, quick=quick)
                sound = sound and step_sound
                print("\n".join(f"{step.page}: {line}" for line in report), flush=True)
    return sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="default: " + ", ".join(PAGES))
    parser.add_argument("--quick", action="store_true", help="leave out tuning runs and what needs their folders")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages] or [ROOT / page for page in PAGES]
    return 0 if walk(pages, quick=options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
