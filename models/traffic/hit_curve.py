"""What a prefix cache would hit: of any size at once, by the distances of an LRU stack (Mattson et al., 1970)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.layout import Array
from models.traffic.trace import Ints, Nodes, Trace

# The curve is told at powers of two from this on, until no larger cache hits more.
SMALLEST_CACHE = 1024
LARGEST_CACHE = 1 << 60
NEVER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Runs of a prompt's pieces that were last used together, root first: of which request, and how many tokens.

    `between`: tokens that were used since; a cache holds the run's first x tokens if it has room for x more. -1 where
    nobody had the run before.
    """

    owner: Ints
    tokens: Ints
    between: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class HitCurve:
    """Share of prompt tokens that a cache of so many tokens holds when they are asked for; `unbounded`: of any size."""

    cache_tokens: tuple[int, ...]
    hit_rate: tuple[float, ...]
    unbounded: float


def hit_curve(trace: Trace, reuse: Reuse | None = None) -> HitCurve:
    """Return the hit rate of an LRU cache by its size, requests in the order of arrival, one after the other.

    Prompts and answers take room; what a prompt brings is in the cache before the next one is looked up.
    """
    total = max(float(trace.isl.sum()), 1.0)
    reuse = reuse or reuse_of(trace)
    again = reuse.between != NEVER
    tokens, between = reuse.tokens[again], reuse.between[again]
    everything = float(tokens.sum())
    sizes, rates = [], []
    size, hit_tokens = SMALLEST_CACHE, -1.0
    while hit_tokens < everything and size < LARGEST_CACHE:
        hit_tokens = float(np.clip(size - between, 0, tokens).sum())
        sizes.append(size)
        rates.append(hit_tokens / total)
        size *= 2
    return HitCurve(cache_tokens=tuple(sizes), hit_rate=tuple(rates), unbounded=everything / total)


def reuse_of(trace: Trace) -> Reuse:
    """Return the runs of all prompts, in their order, with what was used since they last were."""
    owners = trace.owners()
    before = _last_use(trace.nodes, owners)
    prompts = trace.shared()
    starts = _run_starts(owners, before, prompts)
    tokens = np.add.reduceat(trace.tokens, starts, dtype=np.int64) if len(starts) else np.zeros(0, dtype=np.int64)
    owner, last, of_prompts = owners[starts], before[starts], prompts[starts]
    del owners, before, prompts
    # What else a request brings: the rest of its prompt, and the answer where no piece stands for it.
    covered = np.bincount(owner, weights=tokens, minlength=len(trace))
    own = np.maximum(trace.isl + trace.osl - covered, 0.0).astype(np.int64)
    place = np.arange(len(owner)) + owner  # each request's own tokens come after its pieces
    count = len(owner) + len(trace)
    whose, when, weight = (np.full(count, NEVER, dtype=np.int64) for _ in range(3))
    whose[place], when[place], weight[place] = owner, last, tokens
    rest = np.cumsum(np.bincount(owner, minlength=len(trace)) + 1) - 1
    whose[rest], weight[rest] = np.arange(len(trace)), own
    between = _between(whose, when, weight, len(trace))[place]
    return Reuse(owner=owner[of_prompts].astype(np.int64), tokens=tokens[of_prompts], between=between[of_prompts])


def _last_use(nodes: Nodes, owners: Nodes) -> Nodes:
    """Return for each piece the last request before its own that had it too, -1 if none."""
    order = np.argsort(nodes, kind="stable").astype(np.int32)
    same = nodes[order[1:]] == nodes[order[:-1]]
    before = np.full(len(nodes), NEVER, dtype=np.int32)
    before[order[1:][same]] = owners[order[:-1][same]]
    return before


def _run_starts(owners: Nodes, before: Nodes, prompts: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return where a run of pieces begins: of one request, last used together, prompt or answer."""
    if not len(owners):
        return np.zeros(0, dtype=np.intp)
    changed = (owners[1:] != owners[:-1]) | (before[1:] != before[:-1]) | (prompts[1:] != prompts[:-1])
    return np.concatenate([[0], np.flatnonzero(changed) + 1])


def _between(owner: Ints, last: Ints, tokens: Ints, requests: int) -> Ints:
    """Return for each visit the tokens used after the request that last made it and before its own, each once.

    A visit in that span counts if its own last use is not in the span. So the sum is that over all earlier visits whose
    last use is no later than this one's, less those that are no later themselves. `owner` ascends; within a request
    last uses descend, so its visits never count for each other.
    """
    until = np.concatenate([[0.0], np.cumsum(np.bincount(owner, weights=tokens, minlength=requests))])
    span = _dominated(last, tokens) - until[np.maximum(last, 0) + 1]
    return np.where(last == NEVER, NEVER, span).astype(np.int64)


def _dominated(last: Ints, tokens: Ints) -> Array:
    """Sum, for each visit, the tokens of the visits before it whose last use is no later than its own.

    Visits by last use, split by halves of the list from the whole down: what is in the left half of a part counts for
    what comes after it in that order and is in the right half.
    """
    count = len(last)
    sums = np.zeros(count)
    order = np.argsort(last, kind="stable")
    for bit in reversed(range(int(count - 1).bit_length() if count else 0)):
        right = ((order >> bit) & 1).astype(bool)
        running = np.cumsum(np.where(right, 0, tokens[order]))
        part = order >> (bit + 1)
        first = np.flatnonzero(np.concatenate([[True], part[1:] != part[:-1]]))
        sizes = np.diff(first, append=count)
        before = np.concatenate([[0], running])[first]
        sums[order[right]] += (running - np.repeat(before, sizes))[right]
        lefts = np.cumsum(~right)
        base = np.concatenate([[0], lefts])[first]
        rank_left = lefts - np.repeat(base, sizes)  # how many of the part's left half are up to here
        in_left = np.diff(np.concatenate([base, lefts[-1:]]))
        start = np.repeat(first, sizes)
        rank_right = np.arange(1, count + 1) - start - rank_left
        target = start + np.where(right, np.repeat(in_left, sizes) + rank_right, rank_left) - 1
        split = np.empty_like(order)
        split[target] = order
        order = split
    return sums
