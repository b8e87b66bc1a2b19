"""The field's own benchmark, run against the same server as a child process, beside our figures."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hwprobe.errors import InputError, SgtuneError
from hwprobe.holds import scratch_folder
from tuner.bench.point import MeasuredPoint
from tuner.bench.server_side import Address

MODULES = ("sglang.benchmark.serving", "sglang.bench_serving")
LIMIT_S = 3600.0
LAST_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """What sglang.benchmark.serving measured over its whole finite run, ramp-up and drain among it."""

    output_tok_s: float
    tpot_mean_ms: float
    ttft_mean_ms: float
    completed: int
    duration_s: float
    total_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirLoad:
    """What their benchmark sends: the lengths and as many prompts as our point had."""

    point: MeasuredPoint
    isl: int
    osl: int
    model: str
    seed: int


def run_theirs(python: str, url: str, load: TheirLoad) -> Theirs:
    """Run their benchmark with the load of our point. Raises SgtuneError with its last lines."""
    point = load.point
    if shutil.which(python) is None:
        raise InputError(f"--cross-check: no program '{python}' here that could be started")
    address = Address.parse(url)
    with scratch_folder("cross") as folder:
        out = folder / "out.jsonl"
        clients, rate = point.workload.concurrency, point.settings.request_rate
        rate_or_clients = ("--request-rate", str(rate)) if rate else ("--max-concurrency", str(clients))
        words = [
            "--backend", "sglang", "--base-url", f"{'https' if address.secure else 'http'}://{address.host}:{address.port}",
            "--dataset-name", "random-ids",
            "--random-input-len", str(load.isl), "--random-output-len", str(load.osl),
            "--random-range-ratio", str(point.workload.isl.range_ratio), *rate_or_clients,
            "--num-prompts", str(max(clients, point.window.requests)), "--seed", str(load.seed), "--tokenize-prompt",
            "--flush-cache", "--disable-tqdm", "--output-file", str(out),
            *(("--model", load.model) if load.model else ()),
        ]  # fmt: skip
        output = ""
        for module in MODULES:
            try:
                process = subprocess.run(
                    [python, "-m", module, *words], capture_output=True, text=True, timeout=LIMIT_S, check=False
                )
            except subprocess.TimeoutExpired:
                raise SgtuneError(f"--cross-check: sglang's benchmark was not done after {LIMIT_S:.0f} s") from None
            output = process.stdout + process.stderr
            if process.returncode == 0 and out.exists():
                return _read(out)
            if "No module named 'sglang.benchmark" not in output:
                break  # it is there: its own failure is the answer
    tail = "\n".join(output.splitlines()[-LAST_LINES:])
    raise SgtuneError(f"--cross-check: sglang's benchmark failed:\n{tail}")


def _read(path: Path) -> Theirs:
    record = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return Theirs(
        output_tok_s=record["output_throughput"],
        tpot_mean_ms=record["mean_tpot_ms"],
        ttft_mean_ms=record["mean_ttft_ms"],
        completed=record["completed"],
        duration_s=record["duration"],
        total_output_tokens=record["total_output_tokens"],
    )
