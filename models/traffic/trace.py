"""Trace: requests as they came, column by column, and how they are collected one after the other.

A prompt is a path of *pieces*: blocks of a file's prefix hashes, or parts of its texts. Two prompts share the tokens of
the pieces that both begin with. What no piece covers is the request's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hwprobe.errors import InputError
from models.layout import Array

Ints = npt.NDArray[np.int64]
Nodes = npt.NDArray[np.int32]
# Tokens of a block whose hash a Mooncake trace gives (FAST'25 release).
BLOCK_TOKENS = 512
NO_SESSION = -1
# Multipliers of splitmix64, which mixes a piece into the hash of all before it.
MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival; all columns have one entry a request.

    `sent_s`: seconds since the first; `think_s`: where it is no NaN, the request is sent so long after the answer to
    the one before it in its session, and `sent_s` is what that makes with answers in no time. `isl`, `osl`: tokens.
    `session`: -1 for a request on its own. `offsets[i]` to `offsets[i + 1]` are the request's pieces in `nodes` (equal
    nodes are equal pieces after equal pieces) and `tokens`; the last `answers[i]` of them are not its prompt but its
    answer, as a later prompt of the session has it.
    """

    form: str
    sent_s: Array
    think_s: Array
    isl: Ints
    osl: Ints
    session: Nodes
    offsets: Ints
    nodes: Nodes
    tokens: Nodes
    answers: Nodes
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.isl)

    @property
    def sessions(self) -> int:
        """Sessions: those that are named, and each request that belongs to none."""
        named = self.session[self.session != NO_SESSION]
        return len(np.unique(named)) + len(self) - len(named)

    @property
    def duration_s(self) -> float:
        """Seconds from the first request to the last."""
        return float(self.sent_s[-1] - self.sent_s[0]) if len(self) else 0.0

    def shared(self) -> npt.NDArray[np.bool_]:
        """Return which pieces belong to prompts: all but those of answers."""
        owner_end = np.repeat(self.offsets[1:] - self.answers, np.diff(self.offsets))
        return np.asarray(np.arange(len(self.nodes)) < owner_end)

    def owners(self) -> Nodes:
        """Return the request of each piece."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def scaled(self, rate_scale: float) -> Trace:
        """Return the same requests at so many times the rate: sessions begin so much sooner, users think as long."""
        scaled = replace(self, sent_s=self.sent_s / rate_scale)
        waits = ~np.isnan(self.think_s)
        if rate_scale == 1.0 or not waits.any():
            return scaled
        sent_s, last = scaled.sent_s.tolist(), dict[int, float]()
        for index, (session, wait, think_s) in enumerate(
            zip(self.session.tolist(), waits.tolist(), self.think_s.tolist(), strict=True)
        ):
            if wait and session in last:
                sent_s[index] = last[session] + think_s
            last[session] = sent_s[index]
        later = replace(scaled, sent_s=np.array(sent_s))
        return later.taken(np.argsort(later.sent_s, kind="stable"))

    def taken(self, indices: npt.NDArray[np.intp]) -> Trace:
        """Return these requests alone (indices, ascending), with times from the first of them."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        pieces = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
        return Trace(
            form=self.form,
            sent_s=self.sent_s[indices] - self.sent_s[indices[0]],
            think_s=_first_at_its_time(self.think_s[indices], self.session[indices]),
            isl=self.isl[indices],
            osl=self.osl[indices],
            session=self.session[indices],
            offsets=offsets,
            nodes=self.nodes[pieces],
            tokens=self.tokens[pieces],
            answers=self.answers[indices],
            notes=self.notes,
        )


def _first_at_its_time(think_s: Array, session: Nodes) -> Array:
    """Let the first request of each session that is left come at its own time."""
    _, first = np.unique(session, return_index=True)
    first = first[session[first] != NO_SESSION]
    alone = think_s.copy()
    alone[first] = np.nan
    return alone


@dataclass(slots=True)
class TraceBuilder:
    """Collects requests in the order of a file; `trace` sorts and numbers them."""

    form: str
    sent_s: array[float] = field(default_factory=lambda: array("d"))
    think_s: array[float] = field(default_factory=lambda: array("d"))
    isl: array[int] = field(default_factory=lambda: array("q"))
    osl: array[int] = field(default_factory=lambda: array("q"))
    session: array[int] = field(default_factory=lambda: array("i"))
    pieces: array[int] = field(default_factory=lambda: array("i"))
    answers: array[int] = field(default_factory=lambda: array("i"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    tokens: array[int] = field(default_factory=lambda: array("i"))
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.isl)

    def add(self, sent_s: float, isl: int, osl: int, *, session: int = NO_SESSION, think_s: float = np.nan) -> None:
        """Add a request whose prompt shares nothing, until `add_pieces` says what."""
        self.sent_s.append(sent_s)
        self.think_s.append(think_s)
        self.isl.append(isl)
        self.osl.append(osl)
        self.session.append(session)
        self.pieces.append(0)
        self.answers.append(0)

    def add_blocks(self, keys: Sequence[int], block_tokens: int) -> None:
        """Say which blocks of equal size the last request's prompt begins with; the last one may be cut."""
        isl = self.isl[-1]
        count = min(len(keys), -(-isl // block_tokens))
        if count:
            self.keys.extend(keys if count == len(keys) else keys[:count])
            self.tokens.extend([block_tokens] * (count - 1))
            self.tokens.append(min(block_tokens, isl - (count - 1) * block_tokens))
            self.pieces[-1] = count

    def add_pieces(self, pieces: Sequence[tuple[int, int]], answer: int = 0) -> None:
        """Say of which pieces, (key, tokens), the last request is; the last `answer` of them are its answer."""
        self.keys.extend(key for key, _ in pieces)
        self.tokens.extend(tokens for _, tokens in pieces)
        self.pieces[-1] = len(pieces)
        self.answers[-1] = answer

    def trace(self, where: str) -> Trace:
        """Return what was collected, by arrival. Raises InputError for an empty file."""
        if not len(self):
            raise InputError(f"{where} holds no requests")
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(self.pieces, dtype=np.int32), dtype=np.int64)])
        nodes = _chained(np.frombuffer(self.keys, dtype=np.uint64), offsets)
        self.keys = array("Q")  # the largest column: what follows needs the room
        sent_s = np.array(self.sent_s)
        trace = Trace(
            form=self.form,
            sent_s=sent_s - sent_s.min(),
            think_s=np.array(self.think_s),
            isl=np.array(self.isl, dtype=np.int64),
            osl=np.array(self.osl, dtype=np.int64),
            session=np.array(self.session, dtype=np.int32),
            offsets=offsets,
            nodes=nodes,
            tokens=np.frombuffer(self.tokens, dtype=np.int32),
            answers=np.array(self.answers, dtype=np.int32),
            notes=tuple(self.notes),
        )
        if bool((np.diff(sent_s) >= 0).all()):
            return trace
        order = np.argsort(sent_s, kind="stable")
        return trace.taken(order)


def _chained(keys: npt.NDArray[np.uint64], offsets: Ints) -> Nodes:
    """Number the pieces so that equal numbers are equal pieces behind equal beginnings; overwrites `keys`.

    Two different beginnings get one number with a chance of about (pieces)^2 / 2^65.
    """
    lengths = np.diff(offsets)
    by_length = np.argsort(-lengths, kind="stable")
    chain = np.zeros(len(lengths), dtype=np.uint64)
    ends = np.searchsorted(-lengths[by_length], -np.arange(1, int(lengths.max(initial=0)) + 1), side="right")
    for level, rows in enumerate(ends.tolist()):
        which = by_length[:rows]
        at = offsets[which] + level
        mixed = chain[which] * MIX[0] + keys[at] + MIX[2]
        mixed = (mixed ^ (mixed >> np.uint64(30))) * MIX[1]
        mixed = (mixed ^ (mixed >> np.uint64(27))) * MIX[2]
        mixed ^= mixed >> np.uint64(31)
        chain[which] = keys[at] = mixed
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[order]
    nodes = np.empty(len(keys), dtype=np.int32)
    nodes[order] = np.cumsum(np.concatenate([[False], keys[1:] != keys[:-1]])[: len(keys)], dtype=np.int32)
    return nodes
