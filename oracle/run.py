"""The oracle: sgtune's reading of launch lines against SGLang's own, release by release.

    python3 dev.py oracle [--sglang 0.5.23 ...] [--lines 320] [--seed 1] [--brief]     generated launch lines
    python3 dev.py oracle --releases [--lines 80]        the same on ten releases: a table of agreement in percent
    python3 dev.py oracle --defaults [--sglang ...]      default fraction, chunk and graph sizes on every GPU known

Runs in sgtune's environment; SGLang runs in one of its own, which is built on first use, on wheels that are fetched on
first use. Exits 1 when the agreement is below what is promised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu")]

from compare import Tally, compare, report, table
from environment import HOME, python_of, sources_of
from generate import command_lines, default_lines
from packaging.version import Version

from hwprobe.catalogue import gpu_from_catalogue, gpu_keys
from models.architecture import deepseek_r1
from models.version import NEWEST
from planner.sglang.flags import flags_of

RELEASES = ("0.4.3.post4", "0.4.4.post1", "0.4.5.post3", "0.4.6.post5", "0.4.7", "0.4.9.post6", "0.5.3", "0.5.9",
            "0.5.12", "0.5.23")  # fmt: skip
GPUS = ("h200", "h100", "h20", "b200")
ASK_SECONDS = 3600
# Of R1's config.json. No equation needs it; releases of 0.4.9 to 0.5.12 look into it as soon as they see a model.
ROPE = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
VERDICTS, EXACT = 0.99, 0.99
PROMISED = {"mem_fraction_static": 1.0, "chunked_prefill_size": EXACT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The launch lines one release is asked about, on GPUs of the catalogue that are of one kind."""

    release: str
    gpus: tuple[str, ...]
    lines: list[list[str]]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py oracle")
    parser.add_argument("--sglang", nargs="+", help=f"releases to ask; default {NEWEST}")
    parser.add_argument("--releases", action="store_true", help=f"ask {', '.join(RELEASES)}")
    parser.add_argument("--defaults", action="store_true", help="defaults of a few layouts, on every GPU known")
    parser.add_argument("--lines", type=int, default=320, help="launch lines per GPU")
    parser.add_argument("--seed", type=int, default=1, help="seed of the launch lines")
    parser.add_argument("--brief", action="store_true", help="leave the list of disagreements out")
    options = parser.parse_args(arguments)
    several = options.releases or options.defaults
    releases = tuple(options.sglang or (RELEASES if several else (NEWEST,)))
    tallies = measure(runs_of(releases, lines=options.lines, seed=options.seed, defaults=options.defaults))
    for release, tally in tallies.items():
        sys.stdout.write(f"SGLang {release}: {report(tally, every=not options.brief)}\n")
    if len(tallies) > 1:
        sys.stdout.write(table(tallies) + "\n")
    return 0 if all(kept(tally) for tally in tallies.values()) else 1


def runs_of(releases: Sequence[str], *, lines: int, seed: int, defaults: bool = False) -> list[Run]:
    """Return what to ask: generated lines on four GPUs, or the defaults of a few layouts on every GPU."""
    model = str(model_folder())
    runs = []
    for release in releases:
        names = set(flags_of(Version(release)).by_name)
        words = default_lines(model, names) if defaults else command_lines(lines, seed, model, names)
        runs += [Run(release=release, gpus=kind, lines=words) for kind in _kinds(gpu_keys() if defaults else GPUS)]
    return runs


def _kinds(gpus: Iterable[str]) -> list[tuple[str, ...]]:
    """Group GPUs by what SGLang's modules ask once, when they are imported: vendor and compute capability."""
    kinds: dict[str, list[str]] = {}
    for gpu in gpus:
        card = _card(gpu)
        kinds.setdefault(f"{card['name'].startswith('AMD')} {card['capability']}", []).append(gpu)
    return [tuple(kind) for kind in kinds.values()]


def measure(runs: Sequence[Run]) -> dict[str, Tally]:
    """Ask SGLang and sgtune about the same lines and return what agreed, by release."""
    arch = deepseek_r1()
    tallies: dict[str, Tally] = {}
    for run, by_gpu in zip(runs, ask(runs), strict=True):
        if not by_gpu:
            continue  # it does not run here, which was said
        for gpu, answers in zip(run.gpus, by_gpu, strict=True):
            tally = compare(gpu, run.lines, answers, arch, Version(run.release))
            tallies.setdefault(run.release, Tally()).add(tally)
    return tallies


def kept(tally: Tally) -> bool:
    """Say whether the agreement is what is promised."""
    return tally.verdict_share >= VERDICTS and all(tally.share(name) >= least for name, least in PROMISED.items())


def ask(runs: Iterable[Run]) -> list[list[list[dict[str, Any]]]]:
    """Return SGLang's answers to the lines of each run, by GPU. Raises RuntimeError when its process fails."""
    questions = [
        {"folder": str(sources_of(run.release)), "gpus": [_card(gpu) for gpu in run.gpus], "lines": run.lines}
        for run in runs
    ]
    command = [str(python_of(NEWEST)), str(HERE / "ask_sglang.py")]
    process = subprocess.run(
        command, input="".join(json.dumps(question) + "\n" for question in questions), capture_output=True, text=True,
        timeout=ASK_SECONDS, check=False, cwd=HOME,
    )  # fmt: skip
    answers = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
    if process.returncode or len(answers) != len(questions):
        raise RuntimeError(f"SGLang answered {len(answers)} of {len(questions)} runs:\n{process.stderr[-3000:]}")
    remarks = [line for line in process.stderr.splitlines() if line.startswith("oracle: ")]
    sys.stderr.write("".join(line + "\n" for line in remarks))
    return answers


def _card(gpu: str) -> dict[str, Any]:
    profile = gpu_from_catalogue(gpu)
    major, _, minor = (profile.compute_capability or "9.4").partition(".")  # of AMD's CDNA 3, as torch says it
    return {"name": profile.name, "memory_mib": profile.memory_mib.value, "capability": [int(major), int(minor)]}


def model_folder() -> Path:
    """Return a folder with R1's config.json and nothing else: resolution reads no weights."""
    folder = HOME / "DeepSeek-R1"
    folder.mkdir(parents=True, exist_ok=True)
    shipped = json.loads((HERE.parent / "models" / "configs" / "deepseek-r1.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(shipped | {"rope_scaling": ROPE}), encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
