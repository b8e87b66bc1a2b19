"""The same answers before and after: forty commands in two checkouts, their JSON documents and exit codes compared.

    python tools/same_answers.py ../before .             both need the same environment: the one that runs this
    python tools/same_answers.py ../before . --only plan  those whose name contains a word

For a refactoring: what it may change is words. Text for people is compared too, but only listed as reworded. Exit code
1 when a document or an exit code differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLAN = "plan --isl 1000 --osl 1000"
TUNE = "tune --hardware h200x8 --sglang-version 0.5.12 --isl 200 --osl 200 --engine simulated --runs runs --sampler"
POINTS = "--points bench.jsonl --hardware h200x8 --sglang-version 0.5.12"
R1 = "--model-path deepseek-ai/DeepSeek-R1"
# In this order: later commands read what earlier ones wrote. `in/` holds examples/ and the golden files. What a command
# measures by the clock (clock) is compared by its exit code alone.
COMMANDS = {
    "plan founding": f"{PLAN} --hardware nf5688g7 --concurrency 1024 --json",
    "plan founding, its release": f"{PLAN} --hardware nf5688g7 --concurrency 16 --sglang-version 0.4.3 --json",
    "plan h200": f"{PLAN} --hardware h200x8 --concurrency 16 --json",
    "plan h20, 0.5.5": f"{PLAN} --hardware h20-3ex8 --concurrency 64 --sglang-version 0.5.5 --json",
    "plan b200": f"{PLAN} --hardware b200x8 --concurrency 256 --json",
    "plan two nodes": f"{PLAN} --hardware 2xh100x8 --concurrency 64 --json",
    "plan does not fit": f"{PLAN} --hardware h100x8 --concurrency 64 --json",
    "plan SLO met": f"{PLAN} --hardware h200x8 --concurrency 64 --slo tpot:mean<50ms --slo ttft:p99<60s --json",
    "plan SLO missed": f"{PLAN} --hardware h200x8 --concurrency 64 --slo tpot:mean<5ms --json",
    "plan users": f"{PLAN} --hardware nf5688g7 --users 3000 --min-user-tok-s 20 --json",
    "plan rate": f"{PLAN} --hardware nf5688g7 --request-rate 5 --json",
    "plan no MTP": f"{PLAN} --hardware h200x8 --concurrency 16 --no-mtp --json",
    "plan explained": f"{PLAN} --hardware h200x8 --concurrency 16 --explain",
    "check plain": f"check --hardware h200x8 --json -- {R1} --tp-size 8 --trust-remote-code",
    "check DP, EP, MTP": f"check --hardware h200x8 --json -- {R1} --tp-size 8 --dp-size 8 --enable-dp-attention "
    "--moe-a2a-backend deepep --speculative-algorithm EAGLE",
    "check old release": f"check --hardware h20x8 --sglang-version 0.4.5 --json -- {R1} --tp-size 8",
    "check two nodes": f"check --hardware 2xh100x8 --json -- {R1} --tp-size 16 --nnodes 2",
    "check a workload": f"check --hardware h200x8 --isl 4000 --osl 500 --concurrency 8 --json -- {R1} --tp-size 8",
    "check refused": f"check --hardware h200x8 --json -- {R1} --tp-size 8 --ep-size 3",
    "check unknown flag": f"check --hardware h200x8 --json -- {R1} --tp-size 8 --no-such-flag",
    "check a golden script": "check --hardware h200x8 --json in/golden/dp8-ep8-mtp/launch.sh",
    "check a golden compose": "check --hardware h200x8 --json in/golden/tp8/compose.yaml",
    "check a golden unit": "check --hardware h200x8 --json in/golden/tp8/sglang.service",
    "predict": f"predict {POINTS} --launch-args '--tp-size 8' --out predicted.jsonl",
    "calibrate": f"calibrate {POINTS} --launch-args '--tp-size 8' --out here.json --json",
    "calibrate a run": "calibrate --points in/runs/h200x8-64-clients --out run.json --json",
    "validate": "validate --json",
    "validate a profile": f"validate {POINTS} --launch-args '--tp-size 8' --profile here.json --json",
    "plan with a profile": f"{PLAN} --hardware h200x8 --concurrency 16 --profile here.json --json",
    "tune simulated": f"{TUNE} model --concurrency 16 --trials 5 --run a --json",
    "tune users": f"{TUNE} random --objective users --min-user-tok-s 60 --users 64 --trials 3 --run b --json",
    "tune dry": f"{TUNE} model --concurrency 16 --trials 5 --dry-run --json",
    "tune on": f"{TUNE} model --concurrency 16 --trials 6 --run a --resume --json",
    "tune another question": f"{TUNE} model --concurrency 32 --trials 6 --run a --resume --json",
    "export": "export --runs in/runs --run h200x8-64-clients --out made --target bash --target k8s --json",
    "export a bundle": "export --runs runs --run a --bundle bundle --json",
    "export a plan": "export --plan plan.json --target slurm --out planned --json",
    "verify a bundle (clock)": "verify bundle --engine emulated --world in/worlds/quick.toml --point-time 1s --json",
    "verify without a claim": "verify in/golden/tp8/launch.sh --engine emulated",
    "error: hardware": f"{PLAN} --hardware nothing --concurrency 1",
    "error: SLO": f"{PLAN} --hardware h200x8 --concurrency 1 --slo tpot=5",
    "error: no load": f"{PLAN} --hardware h200x8",
    "error: no points": "calibrate --points nowhere.jsonl --hardware h200x8 --out x.json",
}
# What a clock, a process or a path puts into a document.
VOLATILE = re.compile(r"(created|seconds|_at|wall|elapsed|started|finished|took|pid|path|folder|^out$|^file$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one command said in one checkout."""

    code: int
    document: Any
    text: str
    files: dict[str, Any]


def prepare(folder: Path) -> None:
    """Put the inputs that both checkouts read into a working folder."""
    for name in ("runs", "worlds"):
        shutil.copytree(ROOT / "examples" / name, folder / "in" / name)
    shutil.copytree(ROOT / "tests" / "golden" / "export", folder / "in" / "golden")
    rows = [_bench_row(clients) for clients in (1, 4, 16, 64)]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _bench_row(clients: int) -> dict[str, float]:
    """Return a made-up record in the form of SGLang's own benchmark; plausible for TP8 on H200."""
    tpot_ms = 14.0 + 2.1 * clients**0.6
    rate = clients / (tpot_ms / 1e3 + 0.0005)
    return {
        "max_concurrency": clients, "random_input_len": 1000, "random_output_len": 1000, "random_range_ratio": 1.0,
        "mean_tpot_ms": tpot_ms, "median_tpot_ms": tpot_ms, "mean_ttft_ms": 300.0, "median_ttft_ms": 290.0,
        "output_throughput": rate, "completed": 10 * clients, "request_rate": float("inf"), "duration": 10_000 / rate,
    }  # fmt: skip


def answer(checkout: Path, folder: Path, words: list[str]) -> Answer:
    """Run one command of a checkout in its working folder."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "tuner.cli.main", *words]
    before = set(folder.rglob("*"))
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    document = _json(ran.stdout) if "--json" in words else None
    if document is not None and " ".join(words) == COMMANDS["plan founding"]:
        (folder / "plan.json").write_text(ran.stdout)
    new_files = sorted(set(folder.rglob("*")) - before)
    files = {str(path.relative_to(folder)): _content(path) for path in new_files if path.is_file()}
    return Answer(code=ran.returncode, document=document, text=ran.stdout + ran.stderr, files=files)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _content(path: Path) -> Any:
    """Return what a file says: its documents, its text, or only that it is there (a clock's state, a database)."""
    if path.name == "live.json" or path.suffix in (".db", ".log", ".lock"):
        return None
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        return _json(text) or [_json(line) for line in text.splitlines()]
    return path.read_text(encoding="utf-8", errors="replace")


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield every place where two JSON documents differ, volatile fields left out."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if not VOLATILE.search(key):
                yield from differences(before.get(key), after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif isinstance(before, float) and isinstance(after, float):
        if abs(before - after) > 1e-9 * max(abs(before), abs(after)):
            yield f"{where}: {before!r} -> {after!r}"
    elif before != after:
        yield f"{where}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."


def compare(name: str, before: Answer, after: Answer) -> tuple[list[str], bool]:
    """Return what differs between two answers, and whether their words for people do."""
    unlike = [] if before.code == after.code else [f"exit code {before.code} -> {after.code}"]
    if name.endswith("(clock)"):
        return unlike, False
    unlike += differences(before.document, after.document)
    unlike += differences(before.files, after.files, "files")
    return unlike, before.document is None and before.text != after.text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", default="", help="run the commands whose name contains this")
    options = parser.parse_args()
    checkouts = (options.before.resolve(), options.after.resolve())
    for checkout in checkouts:
        _check_import(checkout)
    commands = {name: line for name, line in COMMANDS.items() if options.only in name}
    counts = {"equal": 0, "reworded": 0, "different": 0}
    with tempfile.TemporaryDirectory() as home:
        folders = (Path(home) / "a", Path(home) / "b")
        for folder in folders:
            prepare(folder)
        for name, line in commands.items():
            words = split(line)
            before, after = (answer(*place, words) for place in zip(checkouts, folders, strict=True))
            unlike, reworded = compare(name, before, after)
            verdict = "different" if unlike else "reworded" if reworded else "equal"
            counts[verdict] += 1
            print(f"{verdict:9} exit {after.code}  {name}", flush=True)
            for each in unlike[:12]:
                print(f"            {each}")
            if len(unlike) > 12:
                print(f"            and {len(unlike) - 12} more")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["different"] else 0


def split(line: str) -> list[str]:
    """Return the words of a command; single quotes keep words together."""
    return [quoted or word for quoted, word in re.findall(r"'([^']*)'|(\S+)", line)]


def _check_import(checkout: Path) -> None:
    """Stop where Python would import another checkout, such as the one that is installed."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    code = "import tuner; print(tuner.__file__)"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if not Path(ran.stdout.strip()).is_relative_to(checkout):
        sys.exit(f"{checkout}: Python imports {ran.stdout.strip()} instead")


if __name__ == "__main__":
    sys.exit(main())
