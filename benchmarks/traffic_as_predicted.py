#!/usr/bin/env python3
"""Whether a trace on a server goes as `sgtune predict --traffic` says: hits, TTFT, TPOT and output.

    python benchmarks/traffic_as_predicted.py              the emulated server: everything within 5 %
    python benchmarks/traffic_as_predicted.py --real       the real SGLang on this CPU: cached tokens, equal

`sgtune bench --traffic` sends prompts that share what the trace says. The emulated server has a radix cache and plays
the planner's belief without noise, in real time: a machine whose cores are taken shows in TTFT, and `bench` then says
`client_limited`. Of the real SGLang (0.5.23, a tiny DeepSeek-V3 with made-up weights) only hits are compared: chats
whose requests are far enough apart that each finds all there is. Exit code 1 where a figure is off.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "sglang_cpu")]

R1 = "deepseek-ai/DeepSeek-R1"
READY_S = 300.0
TOLERANCE = 0.05
WORLD = "boot_s = 0.2\nnoise = 0.0\n"
SGTUNE = (sys.executable, "-m", "tuner.cli.main")


@dataclass(frozen=True)
class Served:
    """A trace on a server: what `bench` measured, what `predict` said."""

    measured: dict[str, Any]
    predicted: dict[str, Any]
    prompt_tokens: int

    @property
    def pairs(self) -> dict[str, tuple[float, float]]:
        """Return (measured, predicted) by figure."""
        measured, predicted = self.measured, self.predicted
        return {
            "TTFT mean, ms": (measured["ttft_ms"]["mean"], predicted["ttft_mean_ms"]),
            "TPOT mean, ms": (measured["tpot_ms"]["mean"], predicted["tpot_mean_ms"]),
            "output tok/s": (measured["output_tok_s"], predicted["output_tok_s"]),
            "cached tokens": (measured["cached_tokens"], round(predicted["hit_rate"] * self.prompt_tokens)),
        }

    def off(self, figure: str) -> float:
        measured, predicted = self.pairs[figure]
        return measured / predicted - 1.0


def system_prompt_rows(requests: int, apart_ms: int) -> list[dict[str, Any]]:
    """Return prompts of 7,400 tokens behind one system prompt of 3,072."""
    named = {"input_length": 7400, "output_length": 60}
    return [
        {"timestamp": apart_ms * number, "hash_ids": [*range(6), *range(100 + 9 * number, 109 + 9 * number)], **named}
        for number in range(requests)
    ]


def chat_rows(sessions: int, apart_ms: int) -> list[dict[str, Any]]:
    """Return chats of two or three turns behind a system prompt of 512 tokens, one request at a time."""
    rows: list[dict[str, Any]] = []
    for number in range(sessions):
        turns = 2 + number % 2
        first = {"session_id": f"s{number}", "timestamp": 3 * apart_ms * number, "hash_ids": [0, 100 + number]}
        rows.append({**first, "input_length": 560 + 7 * number, "output_length": 12})
        rows += [
            {"session_id": f"s{number}", "delay": apart_ms, "input_length": 31 + 3 * turn, "output_length": 9}
            for turn in range(1, turns)
        ]
    return rows


def compared(url: str, trace: Path, vocabulary: int, words: Sequence[str]) -> Served:
    """Send the trace to the server, and predict it with the options in `words`."""
    bench = [*SGTUNE, "bench", "--url", url, "--traffic", str(trace), "--vocab-size", str(vocabulary), "--json"]
    measured = json.loads(_run(bench))["traffic"]
    out = trace.with_suffix(".predicted")
    _run([*SGTUNE, "predict", "--traffic", str(trace), "--out", str(out), *words])
    summary = json.loads(_run([*SGTUNE, "traffic", str(trace), "--json"]))
    tokens = round(summary["input_tokens"]["mean"] * summary["requests"])
    return Served(measured=measured, predicted=json.loads(out.read_text(encoding="utf-8")), prompt_tokens=tokens)


def on_the_emulated_server(folder: Path, requests: int = 36, apart_ms: int = 800) -> Served:
    """Serve a system prompt for all on R1, TP8 on eight H200."""
    (folder / "world.toml").write_text(WORLD, encoding="utf-8")
    trace = written(folder / "system.jsonl", system_prompt_rows(requests, apart_ms))
    machine = ["--hardware", "h200x8"]
    start = [sys.executable, "-m", "tuner.emulator", *machine, "--world", str(folder / "world.toml"), "--",
             "--model-path", R1, "--tp", "8"]  # fmt: skip
    with running(start, folder) as url:
        return compared(url, trace, 32_000, [*machine, "--launch-args", "--tp 8"])


def on_the_real_server(folder: Path, sessions: int = 6, apart_ms: int = 4000) -> Served:
    """Serve chats with SGLang itself on this machine's CPU."""
    from run import FLAGS, install

    installed = install()
    trace = written(folder / "chats.jsonl", chat_rows(sessions, apart_ms))
    start = [str(installed.python), "-m", "sglang.launch_server", "--model-path", str(installed.model),
             "--enable-cache-report", *FLAGS]  # fmt: skip
    with running(start, folder) as url:
        words = ["--hardware", "h200x1", "--model", str(installed.model), "--launch-args", "--max-total-tokens 16384"]
        return compared(url, trace, 512, words)


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextmanager
def running(start: Sequence[str], folder: Path) -> Iterator[str]:
    """Start a server on a free port and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen([*start, "--port", str(port)], stdout=log, stderr=log, start_new_session=True,
                                  env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
        try:
            if not _ready(url, server):
                raise SystemExit("the server did not come up:\n" + (folder / "server.log").read_text()[-3000:])
            yield url
        finally:
            os.killpg(server.pid, 9)
            server.wait()


def _ready(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; say whether it does."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health_generate", timeout=30):
                return True
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    return False


def _run(words: Sequence[str]) -> str:
    finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(words)}\n{finished.stderr}")
    return finished.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the real SGLang on this CPU (installed once, 2 minutes)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        served = (on_the_real_server if options.real else on_the_emulated_server)(Path(folder))
    point = served.measured
    print(f"{point['requests']} requests, {point['errors']} errors, {point['verdict']} {point['why']}".rstrip())
    for figure, (measured, predicted) in served.pairs.items():
        if options.real and figure != "cached tokens":
            continue
        print(f"{figure:>15}: measured {measured:12,.2f}   predicted {predicted:12,.2f}   {served.off(figure):+.2%}")
    print(f"cached as due in {point['hits_as_expected']} of {point['requests']} requests")
    if options.real:
        return int(served.off("cached tokens") != 0.0 or point["hits_as_expected"] != point["requests"])
    return int(any(abs(served.off(figure)) > TOLERANCE for figure in served.pairs))


if __name__ == "__main__":
    sys.exit(main())
