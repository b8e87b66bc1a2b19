"""How long and how much memory runs of many records take: resumed by `sgtune tune`, and read by the dashboard.

    python benchmarks/run_sizes.py --records 4000 200000

Prints a row for each size and reader: seconds by the clock and of work, and peak memory. Every reader is a process of
its own. Most records are proposals that were ruled out, as in a long run; every twentieth was launched and measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tuner.evidence.trial import TrialRecord

QUESTION = (
    "tune", "--engine", "simulated", "--hardware", "h200x8", "--isl", "200", "--osl", "100", "--concurrency", "8",
    "--sglang-version", "0.5.12", "--confirm", "0", "--sampler", "random",
)  # fmt: skip
LAUNCHED_EVERY = 20  # 200,000 records hold 10,000 launches, the most that a run may have
# Knobs that the launches walk through, so that no two of them are the same configuration.
KNOBS = {
    "mem_fraction_static": ("default", 0.85, 0.86, 0.87, 0.88, 0.89, 0.9),
    "chunked_prefill_size": ("default", 2048, 4096, 8192, 16384),
    "page_size": ("default", 1, 16, 32, 64),
    "stream_interval": ("default", 2, 4, 8),
    "scheduler_recv_interval": ("default", 2, 4, 8),
    "schedule_conservativeness": ("default", 0.3, 0.5, 1.5),
}
DASHBOARD = (
    "from pathlib import Path; import sys; from dashboard.readers.runs import read_run; "
    "run = read_run(Path(sys.argv[1]), sys.argv[2]); "
    "print(len(run.records), run.winner is not None, run.best is not None, len(run.standings), len(run.effects))"
)


def sgtune(*words: str) -> list[str]:
    return [sys.executable, "-m", "tuner.cli.main", *words]


def make_run(folder: Path, count: int) -> None:
    """Make a run of `count` records from one that sgtune made, sealed as sgtune seals them."""
    from tuner.evidence.trial_lines import read_trials, write_trials

    runs = ("--runs", str(folder), "--run", "a")
    subprocess.run(sgtune(*QUESTION, "--trials", "3", *runs), check=True, capture_output=True)
    file = folder / "a" / "trials.jsonl"
    originals = read_trials(file)
    launched = [record for record in originals if record.launched]
    ruled_out = next((record for record in originals if not record.launched), None)
    blank = replace(ruled_out or launched[0], source="sampler", points=(), failure=None)
    launched = [replace(record, source="sampler") if number else record for number, record in enumerate(launched)]
    write_trials(
        file,
        (
            replace(turned(launched, n // LAUNCHED_EVERY) if n % LAUNCHED_EVERY == 0 else blank, number=n)
            for n in range(count)
        ),
    )
    (folder / "a" / "study.db").unlink(missing_ok=True)


def turned(launched: list[TrialRecord], number: int) -> TrialRecord:
    """Return a launch with its knobs turned as the digits of `number` say."""
    record, params = launched[number % len(launched)], dict[str, object]()
    for knob, values in KNOBS.items():
        params[knob] = values[number % len(values)]
        number //= len(values)
    return replace(record, params={**record.params, **params})


def timed(words: list[str]) -> tuple[float, float, float, str]:
    """Run a command; return seconds by the clock, seconds of work, peak MiB, and the end of what it said."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read().decode(errors="replace")
    if child.returncode:
        raise SystemExit(f"{' '.join(words[:6])} ... ended with {child.returncode}: {printed[-800:]}")
    last = printed.strip().splitlines()[-1] if printed.strip() else ""
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[4000, 200_000])
    parser.add_argument("--make", type=Path, help="only make a run in this folder")
    options = parser.parse_args()
    if options.make is not None:  # a process of its own: a child's peak begins at its parent's
        make_run(options.make, options.records[0])
        return 0
    print(f"{'records':>8}  {'reader':<10} {'clock s':>8} {'work s':>8} {'MiB':>6}")
    for count in options.records:
        with tempfile.TemporaryDirectory(prefix="sgtune-sizes-") as temporary:
            folder = Path(temporary)
            subprocess.run([sys.executable, __file__, "--make", str(folder), "--records", str(count)], check=True)
            resumed = (*QUESTION, "--trials", "1", "--runs", str(folder), "--run", "a", "--resume")
            readers = {
                "dashboard": [sys.executable, "-c", DASHBOARD, str(folder), "a"],
                "resume": sgtune(*resumed),
            }
            timed(readers["resume"])  # writes the trials' folders, which a run has written as it went
            for name, words in readers.items():
                clock, work, mib, _ = timed(words)
                print(f"{count:>8,}  {name:<10} {clock:>8.1f} {work:>8.1f} {mib:>6.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
