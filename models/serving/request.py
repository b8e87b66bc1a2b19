"""A request on its way through a scheduler, and what a scheduler asks of a cache of prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Request:
    """One request on its way; `generated` counts its output tokens as of the step it last joined.

    `prompt` is what there is to prefill: the input, and after a retraction what was generated too; `cached` of its
    tokens were in the prefix cache when it was admitted. While it runs, `left` is the output that was still to come
    when it joined, `due` the step of its last token.
    """

    index: int
    isl: int
    osl: int
    sent_s: float
    visible_s: float
    prompt: int
    prefilled: int = 0
    cached: int = 0
    generated: float = 0.0
    first_token_s: float = -1.0
    start_step: float = 0.0
    left: float = 0.0
    due: float = 0.0


class PrefixCache(Protocol):
    """What a scheduler asks of a cache of prefixes; `locked` tokens are those that requests at work need."""

    @property
    def locked(self) -> int:
        """Return the tokens that cannot be evicted."""

    def look_up(self, request: Request) -> tuple[int, int]:
        """Return how many tokens of a prompt are cached, and how many of them admitting it would lock."""

    def admit(self, request: Request) -> None:
        """Lock what was last looked up."""

    def computed(self, request: Request) -> None:
        """Take in what has been prefilled of a prompt."""

    def finished(self, request: Request) -> None:
        """Take in the answer of a request too, and unlock all of it."""

    def retracted(self, request: Request) -> None:
        """Unlock what a request held that has to begin again."""

    def dropped(self, request: Request) -> None:
        """Forget a request that was aborted, wherever it was."""

    def make_room(self, outside: float) -> None:
        """Evict until so many tokens fit beside the cache."""
