"""The oracle: sgtune's reading of launch lines against SGLang's own, for one release and four GPUs.

    python3 dev.py oracle [--sglang 0.5.23] [--lines 320] [--seed 1] [--brief]

Runs in sgtune's environment; SGLang runs in one of its own, which is built on first use. Exits 1 when the
agreement is below what is promised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sglang_cpu")]

from compare import Tally, compare, report
from environment import HOME, python_of
from generate import command_lines
from packaging.version import Version

from hwprobe.catalogue import gpu_from_catalogue
from models.architecture import deepseek_r1

GPUS = ("h200", "h100", "h20", "b200")
ASK_SECONDS = 900
VERDICTS, EXACT = 0.98, 0.99
PROMISED = {"mem_fraction_static": EXACT, "chunked_prefill_size": EXACT}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py oracle")
    parser.add_argument("--sglang", default="0.5.23", help="release to ask")
    parser.add_argument("--lines", type=int, default=320, help="launch lines per GPU")
    parser.add_argument("--seed", type=int, default=1, help="seed of the launch lines")
    parser.add_argument("--brief", action="store_true", help="leave the list of disagreements out")
    asked = parser.parse_args(arguments)
    tally = measure(asked.sglang, asked.lines, asked.seed)
    sys.stdout.write(report(tally, every=not asked.brief) + "\n")
    return 0 if kept(tally) else 1


def measure(release: str, lines: int, seed: int) -> Tally:
    """Ask SGLang and sgtune about the same lines on every GPU and return what agreed."""
    python = python_of(release)
    arch = deepseek_r1()
    words = command_lines(lines, seed, str(model_folder()))
    tally = Tally()
    with ThreadPoolExecutor(max_workers=2) as pool:
        for gpu, answers in zip(GPUS, pool.map(lambda gpu: ask(python, gpu, words), GPUS), strict=True):
            tally.add(compare(gpu, words, answers, arch, Version(release)))
    return tally


def kept(tally: Tally) -> bool:
    """Say whether the agreement is what is promised."""
    return tally.verdict_share >= VERDICTS and all(tally.share(name) >= least for name, least in PROMISED.items())


def ask(python: Path, gpu: str, words: list[list[str]]) -> list[dict[str, Any]]:
    """Return SGLang's answer to each line on one GPU. Raises RuntimeError when its process fails."""
    profile = gpu_from_catalogue(gpu)
    major, _, minor = (profile.compute_capability or "9.0").partition(".")
    card = {"name": profile.name, "memory_mib": profile.memory_mib.value, "capability": [int(major), int(minor)]}
    questions = "".join(json.dumps({"id": index, "argv": argv}) + "\n" for index, argv in enumerate(words))
    command = [str(python), str(HERE / "ask_sglang.py"), json.dumps(card)]
    done = subprocess.run(
        command, input=questions, capture_output=True, text=True, timeout=ASK_SECONDS, check=False, cwd=HOME
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(answers) != len(words):
        raise RuntimeError(f"SGLang answered {len(answers)} of {len(words)} lines:\n{done.stderr[-2000:]}")
    return answers


def model_folder() -> Path:
    """Return a folder with R1's config.json and nothing else: resolution reads no weights."""
    folder = HOME / "DeepSeek-R1"
    folder.mkdir(parents=True, exist_ok=True)
    shipped = HERE.parent / "models" / "configs" / "deepseek-r1.json"
    (folder / "config.json").write_bytes(shipped.read_bytes())
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
