"""SGLang's radix cache as it decides: what a prompt matches, what is inserted where, what is evicted.

Tokens are never looked at: a prompt is a path of pieces, equal pieces behind equal beginnings have one number
(`models.traffic.trace`), and a node of the tree is a stretch of such a path. `oracle/radix.py` holds it against
SGLang's own classes (RadixCache of 0.5.23).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PromptPath:
    """A prompt and its answer as pieces: their numbers, and the tokens up to the end of each."""

    pieces: list[int]
    ends: list[int]

    def piece_at(self, token: int) -> int:
        """Return the level of the piece that a token (from 0) is in."""
        return bisect_right(self.ends, token)


@dataclass(slots=True, eq=False)
class RadixNode:
    """The tokens from `start` to `end` of `path`; `locks` counts the running requests that need it.

    `level`: that of the piece its last token is in; `key`: the piece by which its parent finds it.
    """

    parent: RadixNode | None
    path: PromptPath
    start: int
    end: int
    used: int
    level: int = -1
    key: int = 0
    locks: int = 0
    children: dict[int, RadixNode] = field(default_factory=dict)


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

    def match(self, path: PromptPath, tokens: int) -> RadixNode:
        """Return the node where the longest cached beginning of the first `tokens` ends; a node is split there."""
        self.clock += 1
        node = self.root
        until = tokens - tokens % self.page
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

    def insert(self, path: PromptPath, tokens: int) -> RadixNode:
        """Keep the first `tokens` of a path; return the node where they end."""
        self.clock += 1
        node = self.root
        until = tokens - tokens % self.page
        while node.end < until:
            child = self._child(node, path, until)
            if child is None:
                break
            child.used = self.clock
            shared = self._shared(child, path, until)
            node = child if shared == child.end else self._split(child, shared)
        if node.end < until:
            new = RadixNode(node, path, node.end, until, self.clock, path.piece_at(until - 1))
            new.key = path.pieces[path.piece_at(new.start + self.page - 1)]
            node.children[new.key] = new
            self.evictable += until - node.end
            self._offer(new)
            node = new
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

    def _child(self, node: RadixNode, path: PromptPath, until: int) -> RadixNode | None:
        last = node.end + self.page - 1
        if last >= until:
            return None
        return node.children.get(path.pieces[path.piece_at(last)])

    def _shared(self, node: RadixNode, path: PromptPath, until: int) -> int:
        """Return up to which token a path goes along a node, in whole pages."""
        ours, theirs = path, node.path
        if (
            len(ours.pieces) > node.level
            and ours.pieces[node.level] == theirs.pieces[node.level]
            and min(ours.ends[node.level], until) >= node.end
        ):
            return node.end
        level = theirs.piece_at(node.start)
        end = node.start
        while level < len(ours.pieces) and level < len(theirs.pieces) and ours.pieces[level] == theirs.pieces[level]:
            end = min(ours.ends[level], theirs.ends[level])
            if ours.ends[level] != theirs.ends[level]:
                break
            level += 1
        end = min(end, until, node.end)
        return end - (end - node.start) % self.page

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Part a node in two; return the upper one."""
        parent = node.parent
        assert parent is not None
        upper = RadixNode(
            parent, node.path, node.start, at, self.clock, node.path.piece_at(at - 1), node.key, node.locks
        )
        parent.children[node.key] = upper
        node.parent, node.start = upper, at
        node.key = node.path.pieces[node.path.piece_at(at + self.page - 1)]
        upper.children[node.key] = node
        return upper
