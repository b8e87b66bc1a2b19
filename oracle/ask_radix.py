"""Does on SGLang's own radix cache what sgtune's did, and tells what it hit.

    python ask_radix.py < IN > OUT

A line of IN is one trace: {"page", "paths": [[pieces, ends, prompt], ...], "done": [[what, which, tokens], ...]}.
The line of OUT has {"hits": tokens found by each look-up, "evicted": tokens by each eviction, "left": tokens at the
end}. Runs inside the environment that `environment.py` builds. A token is made of its piece and its place in it.
"""

from __future__ import annotations

import json
import sys
from array import array
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

PIECE = 1 << 24


class Pool:
    """Stands for the KV pool: nothing is kept in it, and what is freed is gone."""

    device = "cpu"

    def free_segment(self, indices: Any, start_pos: int = 0) -> None:
        """Take back what is no longer cached."""


def main() -> None:
    for line in sys.stdin:
        trace = json.loads(line)
        sys.stdout.write(json.dumps(Ours(trace).run()) + "\n")
        sys.stdout.flush()


class Ours:
    """The trace's requests on one tree."""

    def __init__(self, trace: dict[str, Any]) -> None:
        self.tree = RadixCache.create_simulated(mock_allocator=Pool(), page_size=trace["page"])
        self.paths, self.done = trace["paths"], trace["done"]
        self.found: dict[int, Any] = {}
        self.held: dict[int, Any] = {}
        self.answer: dict[str, list[int]] = {"hits": [], "evicted": []}

    def run(self) -> dict[str, Any]:
        for what, which, tokens in self.done:
            getattr(self, what)(which, tokens)
        return {**self.answer, "left": self.tree.total_size()}

    def key(self, which: int, tokens: int) -> RadixKey:
        pieces, ends, _ = self.paths[which]
        ids, start = array("q"), 0
        for piece, end in zip(pieces, ends, strict=True):
            ids.extend(range(piece * PIECE, piece * PIECE + end - start))
            start = end
        return RadixKey(ids[:tokens])

    def match(self, which: int, tokens: int) -> None:
        result = self.tree.match_prefix(MatchPrefixParams(key=self.key(which, tokens)))
        self.found[which] = result.last_device_node
        self.answer["hits"].append(int(result.device_prefix_len))

    def lock(self, which: int, _: int) -> None:
        self.held[which] = self.found[which]
        self.tree.inc_lock_ref(self.held[which])

    def keep(self, which: int, tokens: int) -> None:
        key, prompt = self.key(which, tokens), self.paths[which][2]
        self.tree.insert(InsertParams(key=key))
        if tokens > prompt:
            self.tree.insert(InsertParams(key=self.key(which, prompt)))
        node = self.tree.match_prefix(MatchPrefixParams(key=self.key(which, tokens))).last_device_node
        self.tree.dec_lock_ref(self.held[which])
        self.tree.inc_lock_ref(node)
        self.held[which] = node

    def unlock(self, which: int, _: int) -> None:
        self.tree.dec_lock_ref(self.held.pop(which))

    def evict(self, _: int, tokens: int) -> None:
        self.answer["evicted"].append(int(self.tree.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted))


if __name__ == "__main__":
    main()
