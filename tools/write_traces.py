"""Writes small traces of traffic that nobody had: a chat product, agents in loops, one long system prompt for all.

    python tools/write_traces.py                                     the two examples, examples/traffic
    python tools/write_traces.py --kind chat --sessions 2000 --out chat.jsonl [--seed 1] [--minutes 60]

Lengths and pauses are lognormal, about what published traces of each kind have; sessions begin at random, three times
as often in the middle fifth of the time as outside it. The form is AIPerf's: a later turn holds what is new.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples" / "traffic"
BLOCK = 512
# Sessions begin so many times as often in the middle fifth of the time.
PEAK = 3.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Sessions of one kind. Lengths in tokens and pauses in seconds, each as (median, sigma of the logarithm).

    `systems` are lengths of system prompts, in blocks; every session begins with one of them.
    """

    systems: tuple[int, ...]
    turns: tuple[float, float]
    asked: tuple[float, float]
    new: tuple[float, float]
    answered: tuple[float, float]
    pause_s: tuple[float, float]


KINDS = {
    "chat": Kind(systems=(2, 2, 4), turns=(3.0, 0.8), asked=(120, 1.0), new=(60, 1.0), answered=(280, 0.8),
                 pause_s=(25, 0.8)),
    "agents": Kind(systems=(12, 16), turns=(10.0, 0.6), asked=(600, 0.8), new=(700, 1.1), answered=(130, 0.7),
                   pause_s=(1.5, 0.9)),
    "system": Kind(systems=(6,), turns=(1.0, 0.0), asked=(250, 0.9), new=(1, 0.0), answered=(200, 0.7),
                   pause_s=(1, 0.0)),
}  # fmt: skip


def rows_of(kind: Kind, sessions: int, minutes: float, seed: int) -> Iterator[Row]:
    """Yield the requests of so many sessions that begin within so many minutes, by session."""
    rng = np.random.default_rng(seed)
    starts_ms = np.sort(_starts(rng, sessions) * minutes * 60e3).astype(int).tolist()
    offsets = np.cumsum([0, *kind.systems]).tolist()
    fresh = offsets[-1]

    def drawn(law: tuple[float, float], most: float = 60_000.0) -> int:
        return int(np.clip(round(rng.lognormal(np.log(law[0]), law[1])), 1, most))

    for session, start_ms in enumerate(starts_ms):
        which = int(rng.integers(len(kind.systems)))
        prompt_tokens = drawn(kind.asked)
        own = -(-prompt_tokens // BLOCK)
        system = list(range(offsets[which], offsets[which + 1]))
        yield {"session_id": f"s{session}", "timestamp": start_ms, "input_length": len(system) * BLOCK + prompt_tokens,
               "output_length": drawn(kind.answered), "hash_ids": [*system, *range(fresh, fresh + own)]}  # fmt: skip
        fresh += own
        for _ in range(drawn(kind.turns, 40.0) - 1):
            pause_ms = max(1, round(1e3 * rng.lognormal(np.log(kind.pause_s[0]), kind.pause_s[1])))
            yield {"session_id": f"s{session}", "delay": pause_ms, "input_length": drawn(kind.new),
                   "output_length": drawn(kind.answered)}  # fmt: skip


def _starts(rng: np.random.Generator, count: int) -> Any:
    """Draw when sessions begin, from 0 to 1."""
    inside = rng.random(count) < PEAK * 0.2 / (PEAK * 0.2 + 0.8)
    outside = rng.random(count) * 0.8
    outside += np.where(outside > 0.4, 0.2, 0.0)
    return np.where(inside, 0.4 + 0.2 * rng.random(count), outside)


def write(path: Path, kind: str, sessions: int, minutes: float, seed: int) -> None:
    """Write a trace of one kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row) + "\n" for row in rows_of(KINDS[kind], sessions, minutes, seed))
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.kind is None:
        write(EXAMPLES / "chat.jsonl", "chat", 400, 20.0, 1)
        write(EXAMPLES / "agents.jsonl", "agents", 60, 20.0, 2)
    else:
        write(
            options.out or Path(f"{options.kind}.jsonl"), options.kind, options.sessions, options.minutes, options.seed
        )


if __name__ == "__main__":
    main()
