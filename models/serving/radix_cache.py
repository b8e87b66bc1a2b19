"""SGLang's radix cache as it decides: what a prompt matches, what is inserted where, what is evicted.

Tokens are never looked at: a prompt is a path of pieces, equal pieces behind equal beginnings have one number
(`models.traffic.trace`), and a node of the tree is a stretch of such a path. `oracle/radix.py` holds it against
SGLang's own classes (RadixCache of 0.5.23).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Path(Protocol):
    """A prompt and its answer, as far as a tree of beginnings looks at them."""

    def page_key(self, start: int, page: int) -> Any:
        """Return what tells the page from token `start` on apart from others behind the same beginning."""

    def shared(self, other: Any, start: int, until: int) -> int:
        """Return up to which token (at most `until`) it is as another of its kind that is equal up to `start`."""


@dataclass(frozen=True, slots=True)
class TokenPath:
    """A prompt and its answer as tokens."""

    tokens: Sequence[int]

    def page_key(self, start: int, page: int) -> Any:
        return tuple(self.tokens[start : start + page])

    def shared(self, other: TokenPath, start: int, until: int) -> int:
        ours, theirs = self.tokens, other.tokens
        low, high = start, min(until, len(ours), len(theirs))
        if ours[low:high] == theirs[low:high]:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if ours[low:middle] == theirs[low:middle]:
                low = middle
            else:
                high = middle
        return low


@dataclass(frozen=True, slots=True)
class PromptPath:
    """A prompt and its answer as pieces: their numbers, and the tokens up to the end of each."""

    pieces: list[int]
    ends: list[int]

    def piece_at(self, token: int) -> int:
        """Return the level of the piece that a token (from 0) is in."""
        return bisect_right(self.ends, token)

    def page_key(self, start: int, page: int) -> Any:
        return self.pieces[self.piece_at(start + page - 1)]

    def shared(self, other: PromptPath, start: int, until: int) -> int:
        ours, theirs = self, other
        last = theirs.piece_at(until - 1)
        if (
            len(ours.pieces) > last
            and ours.pieces[last] == theirs.pieces[last]
            and min(ours.ends[last], theirs.ends[last]) >= until
        ):
            return until
        level, end = theirs.piece_at(start), start
        while level < len(ours.pieces) and level < len(theirs.pieces) and ours.pieces[level] == theirs.pieces[level]:
            end = min(ours.ends[level], theirs.ends[level])
            if ours.ends[level] != theirs.ends[level]:
                break
            level += 1
        return min(end, until)


@dataclass(slots=True, eq=False)
class RadixNode:
    """The tokens from `start` to `end` of `path`; `locks` counts the running requests that need it.

    `key`: that of its first page, by which its parent finds it.
    """

    parent: RadixNode | None
    path: Path
    start: int
    end: int
    used: int
    key: Any = None
    locks: int = 0
    children: dict[Any, RadixNode] = field(default_factory=dict)


@dataclass(slots=True)
class RadixCache:
    """The tree. `locked` and `evictable` are tokens; time is the number of the operation."""

    page: int = 1
    locked: int = 0
    evictable: int = 0
    clock: int = 0
    root: RadixNode = field(default_factory=lambda: RadixNode(None, PromptPath([], []), 0, 0, 0))
    leaves: list[tuple[int, int, RadixNode]] = field(default_factory=list)
    pushes: int = 0

    def match(self, path: Path, tokens: int) -> RadixNode:
        """Return the node where the longest cached beginning of the first `tokens` ends; a node is split there."""
        return self._descend(path, tokens - tokens % self.page)

    def insert(self, path: Path, tokens: int) -> RadixNode:
        """Keep the first `tokens` of a path; return the node where they end."""
        until = tokens - tokens % self.page
        node = self._descend(path, until)
        if node.end < until:
            new = RadixNode(node, path, node.end, until, self.clock, path.page_key(node.end, self.page))
            node.children[new.key] = new
            self.evictable += until - node.end
            self._offer(new)
            node = new
        return node

    def _descend(self, path: Path, until: int) -> RadixNode:
        """Return the node where what is cached of a path's first `until` tokens ends, split there if need be."""
        self.clock += 1
        node = self.root
        while node.end < until:
            child = self._child(node, path, until)
            if child is None:
                break
            child.used = self.clock
            shared = self._shared(child, path, until)
            if shared < child.end:
                return self._split(child, shared)
            node = child
        return node

    def lock(self, node: RadixNode) -> None:
        """Keep a node and all above it until it is unlocked as often."""
        at: RadixNode | None = node
        while at is not None and at.parent is not None:
            if at.locks == 0:
                self.evictable -= at.end - at.start
                self.locked += at.end - at.start
            at.locks += 1
            at = at.parent

    def unlock(self, node: RadixNode) -> None:
        """Take a lock off."""
        at: RadixNode | None = node
        while at is not None and at.parent is not None:
            at.locks -= 1
            if at.locks == 0:
                self.evictable += at.end - at.start
                self.locked -= at.end - at.start
                self._offer(at)
            at = at.parent

    def unlocked_above(self, node: RadixNode) -> int:
        """Return the tokens that locking a node would take from what can be evicted."""
        tokens = 0
        at: RadixNode | None = node
        while at is not None and at.parent is not None and at.locks == 0:
            tokens += at.end - at.start
            at = at.parent
        return tokens

    def evict(self, tokens: int) -> int:
        """Drop whole leaves, the one not used for longest first, until so many tokens are free; return how many."""
        freed = 0
        while freed < tokens and self.leaves:
            used, _, node = heapq.heappop(self.leaves)
            parent = node.parent
            if parent is None or node.children or node.locks:
                continue
            if used != node.used:
                self._offer(node)
                continue
            freed += node.end - node.start
            del parent.children[node.key]
            node.parent = None
            self._offer(parent)
        self.evictable -= freed
        return freed

    def _offer(self, node: RadixNode) -> None:
        """Note a leaf that can be evicted."""
        if node.parent is not None and not node.children and not node.locks:
            self.pushes += 1
            heapq.heappush(self.leaves, (node.used, self.pushes, node))

    def _child(self, node: RadixNode, path: Path, until: int) -> RadixNode | None:
        if node.end + self.page > until:
            return None
        return node.children.get(path.page_key(node.end, self.page))

    def _shared(self, node: RadixNode, path: Path, until: int) -> int:
        """Return up to which token a path goes along a node, in whole pages."""
        end = path.shared(node.path, node.start, min(until, node.end))
        return end - (end - node.start) % self.page

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Part a node in two; return the upper one."""
        parent = node.parent
        assert parent is not None
        upper = RadixNode(parent, node.path, node.start, at, self.clock, node.key, node.locks)
        parent.children[node.key] = upper
        node.parent, node.start = upper, at
        node.key = node.path.page_key(at, self.page)
        upper.children[node.key] = node
        return upper
