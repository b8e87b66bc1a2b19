"""The prefix caches of one server: a radix cache for each attention-DP rank, behind the scheduler's seam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from models.serving.radix_cache import Path, RadixCache, RadixNode
from models.serving.request import Request


@dataclass(slots=True)
class HeldPrompt:
    """What a request at work holds: its rank's tree, its prompt, and the node it has locked."""

    tree: RadixCache
    path: Path
    isl: int
    node: RadixNode


@dataclass(slots=True, kw_only=True)
class PrefixCaches:
    """Radix caches of `ranks` ranks with `kv_tokens` among them; SGLang deals requests to its ranks in turn.

    `path_of` gives the prompt and answer of a request by its index. A rank's share of running answers is taken to be
    that of all ranks. `told` hears of every operation, for those who hold it against SGLang's own classes.
    """

    path_of: Callable[[int], Path]
    kv_tokens: int
    ranks: int = 1
    page: int = 1
    told: Callable[[str, int, int], None] | None = None
    trees: list[RadixCache] = field(default_factory=list)
    held: dict[int, HeldPrompt] = field(default_factory=dict)
    waiting: dict[int, HeldPrompt] = field(default_factory=dict)
    dealt: int = 0

    def __post_init__(self) -> None:
        self.trees = [RadixCache(page=self.page) for _ in range(self.ranks)]

    @property
    def locked(self) -> int:
        return sum(tree.locked for tree in self.trees)

    def look_up(self, request: Request) -> tuple[int, int]:
        """Return how many tokens of a prompt are cached, and how many of those can still be evicted.

        The last token is always computed: its output is what is wanted.
        """
        held_prompt = self.waiting.get(request.index)
        if held_prompt is None:
            tree = self.trees[self.dealt % self.ranks]
            self.dealt += 1
            held_prompt = HeldPrompt(tree, self.path_of(request.index), request.isl, tree.root)
            self.waiting[request.index] = held_prompt
        self._tell("match", request.index, request.prompt - 1)
        held_prompt.node = held_prompt.tree.match(held_prompt.path, request.prompt - 1)
        return held_prompt.node.end, held_prompt.tree.unlocked_above(held_prompt.node)

    def admit(self, request: Request) -> None:
        held_prompt = self.waiting.pop(request.index)
        self._tell("lock", request.index, 0)
        held_prompt.tree.lock(held_prompt.node)
        self.held[request.index] = held_prompt

    def computed(self, request: Request) -> None:
        held_prompt = self.held[request.index]
        self._keep(request.index, held_prompt, request.prefilled)

    def finished(self, request: Request) -> None:
        """Keep prompt and answer but for the last token, which no step has read."""
        held_prompt = self.held.pop(request.index)
        self._keep(request.index, held_prompt, held_prompt.isl + max(0, request.osl - 1))
        self._tell("unlock", request.index, 0)
        held_prompt.tree.unlock(held_prompt.node)

    def retracted(self, request: Request) -> None:
        held_prompt = self.held.pop(request.index)
        self._tell("unlock", request.index, 0)
        held_prompt.tree.unlock(held_prompt.node)
        self.waiting[request.index] = held_prompt

    def dropped(self, request: Request) -> None:
        """Unlock what an aborted request held, if it was at work."""
        self.waiting.pop(request.index, None)
        held_prompt = self.held.pop(request.index, None)
        if held_prompt is not None:
            held_prompt.tree.unlock(held_prompt.node)

    def make_room(self, outside: float) -> None:
        room = (self.kv_tokens - outside) / self.ranks
        for rank, tree in enumerate(self.trees):
            short = tree.locked + tree.evictable - room
            if short > 0 and tree.evictable:
                self._tell("evict", rank, int(-(-short // 1)))
                tree.evict(int(-(-short // 1)))

    def _keep(self, index: int, held_prompt: HeldPrompt, tokens: int) -> None:
        """Insert, part the answer from the prompt, and lock the end of what is there instead of what was."""
        self._tell("keep", index, tokens)
        held_prompt.tree.insert(held_prompt.path, tokens)
        if tokens > held_prompt.isl:
            held_prompt.tree.insert(held_prompt.path, held_prompt.isl)
        node = held_prompt.tree.match(held_prompt.path, tokens)
        held_prompt.tree.unlock(held_prompt.node)
        held_prompt.tree.lock(node)
        held_prompt.node = node

    def _tell(self, what: str, which: int, tokens: int) -> None:
        if self.told is not None:
            self.told(what, which, tokens)
