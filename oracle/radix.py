"""The oracle of the radix cache: what sgtune's replay hits, against SGLang's own cache on the same operations.

    python3 dev.py oracle --radix [--sessions 40]

Three kinds of traffic (a system prompt for all, chats, agents in loops) are replayed on a server whose KV cache is
small enough to evict; every look-up, insertion, lock and eviction is then done on SGLang's RadixCache. Exits 1 unless
every look-up hits the same tokens and every eviction frees the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "sglang_cpu"), str(HERE.parent / "tools")]

from run import RELEASE, install
from write_traces import KINDS, write

from models.architecture import deepseek_r1
from models.layout import table_of
from models.serving.estimate import limits_of
from models.serving.radix_cache import PromptPath, RadixCache
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from models.serving.trace_replay import TraceServers, paths, replay_trace
from models.traffic.trace import Trace
from models.version import NEWEST, parse_version
from planner.check.judge import check_arguments
from planner.inputs import read_hardware
from planner.plans.make import PlanQuestion
from tuner.trace_files.read import read_trace

# KV tokens that hold some sessions of each kind, and far from all; page sizes of R1's attention backends.
KV_TOKENS = {"system": 40_000, "chat": 60_000, "agents": 250_000}
PAGES = (1, 64)
ASK_SECONDS = 1800


@dataclass
class Told:
    """What the caches of a replay were told to do, in order."""

    done: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, what: str, which: int, tokens: int) -> None:
        self.done.append((what, which, tokens))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py oracle --radix")
    parser.add_argument("--sessions", type=int, default=40)
    options = parser.parse_args(arguments)
    installed = install()
    same = True
    for kind in ("system", "chat", "agents"):
        trace = _trace(kind, options.sessions)
        for page in PAGES:
            same &= _compare(kind, trace, page, installed.python)
    return 0 if same else 1


def _trace(kind: str, sessions: int) -> Trace:
    assert kind in KINDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write(path, kind, sessions, minutes=10.0, seed=7)
        return read_trace(path)


def _compare(kind: str, trace: Trace, page: int, python: Path) -> bool:
    log = Told()
    times, limits = _server(KV_TOKENS[kind])
    replayed = replay_trace(trace, TraceServers(times=times, limits=limits, page=page), log)
    ours, evicted = _ours(trace, log, page)
    path_of = paths(trace)
    question = {
        "page": page,
        "paths": [_words(path_of(index), int(isl)) for index, isl in enumerate(trace.isl)],
        "done": log.done,
    }
    answer = _ask(python, question)
    hits = answer["hits"] == ours and answer["evicted"] == evicted
    sys.stdout.write(
        f"{kind}, pages of {page}: {len(trace)} requests, {len(ours)} look-ups, {sum(ours):,} tokens hit, "
        f"{len(evicted)} evictions of {sum(evicted):,} tokens; SGLang {RELEASE}: {sum(answer['hits']):,} hit, "
        f"{sum(answer['evicted']):,} evicted: {'equal to the token' if hits else 'DIFFERENT'} "
        f"(hit rate {replayed.hit_rate:.1%})\n"
    )
    return hits


def _words(path: PromptPath, isl: int) -> list[Any]:
    return [path.pieces, path.ends, isl]


def _ours(trace: Trace, log: Told, page: int) -> tuple[list[int], list[int]]:
    """Do the operations once more on sgtune's tree alone, and return what it hit and evicted."""
    path_of, tree = paths(trace), RadixCache(page=page)
    prompt_paths = [path_of(index) for index in range(len(trace))]
    matched: dict[int, Any] = {}
    locked: dict[int, Any] = {}
    hits, evicted = [], []
    for what, which, tokens in log.done:
        if what == "match":
            matched[which] = tree.match(prompt_paths[which], tokens)
            hits.append(matched[which].end)
        elif what == "lock":
            locked[which] = matched[which]
            tree.lock(locked[which])
        elif what == "keep":
            tree.insert(prompt_paths[which], tokens)
            if tokens > trace.isl[which]:
                tree.insert(prompt_paths[which], int(trace.isl[which]))
            node = tree.match(prompt_paths[which], tokens)
            tree.unlock(locked[which])
            tree.lock(node)
            locked[which] = node
        elif what == "unlock":
            tree.unlock(locked.pop(which))
        else:
            evicted.append(tree.evict(tokens))
    return hits, evicted


def _server(kv_tokens: int) -> tuple[StepTimes, Limits]:
    """Return R1 on eight H200 with a KV cache of this size."""
    arch, version = deepseek_r1(), parse_version(NEWEST)
    hardware = read_hardware("h200x8")
    context = PlanQuestion(hardware=hardware, arch=arch, version=version, isl=1, osl=1, concurrency=1).context()
    words = ["--model-path", "deepseek-ai/DeepSeek-R1", "--tp", "8"]
    config = check_arguments(words, arch, context.machine, version).resolved.config
    table = table_of([config])
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=512)
    return times, limits_of(config, table, kv_tokens)


def _ask(python: Path, question: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.run(
        [str(python), str(HERE / "ask_radix.py")], input=json.dumps(question) + "\n", capture_output=True, text=True,
        timeout=ASK_SECONDS, check=False,
    )  # fmt: skip
    if process.returncode:
        raise RuntimeError(f"SGLang's cache could not be asked:\n{process.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
