"""A trace as a file: JSON lines that Mooncake's and AIPerf's tools read too; names and hashes are numbered anew."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from models.traffic.smaller import first_seen
from models.traffic.trace import BLOCK_TOKENS, NO_SESSION, Trace

# Blocks of pieces whose lengths vary: what is shared is kept to within so many tokens a prompt.
SMALL_BLOCK = 16


def trace_lines(trace: Trace) -> Iterator[str]:
    """Yield a line for each request; nothing of the old hashes and session names is left.

    A later turn that goes on from all before it is written as AIPerf has it: its `input_length` is what is new.
    """
    nodes, sessions = first_seen(trace.nodes).tolist(), first_seen(trace.session).tolist()
    tokens, offsets = trace.tokens.tolist(), trace.offsets.tolist()
    block = BLOCK_TOKENS if _whole_blocks(trace) else SMALL_BLOCK
    named: dict[tuple[int, int], int] = {}
    last: dict[int, list[int]] = {}
    for index, (sent_s, think_s, isl, osl, session, answer) in enumerate(
        zip(*(column.tolist() for column in (trace.sent_s, trace.think_s, trace.isl, trace.osl, trace.session,
                                             trace.answers)), strict=True)
    ):  # fmt: skip
        start, end = offsets[index], offsets[index + 1]
        path, before = nodes[start:end], last.get(session)
        row: dict[str, Any] = {}
        if session != NO_SESSION:
            row["session_id"] = str(sessions[index])
        if math.isnan(think_s):
            row["timestamp"] = _ms(sent_s)
        else:
            row["delay"] = _ms(think_s)
        goes_on = session != NO_SESSION and before is not None and path[: len(before)] == before
        earlier_tokens = sum(tokens[start : start + len(before)]) if goes_on and before is not None else 0
        if goes_on and earlier_tokens < isl:
            row |= {"input_length": isl - earlier_tokens, "output_length": osl}
        else:
            row |= {"input_length": isl, "output_length": osl}
            row |= _blocks(path[: len(path) - answer], tokens[start : end - answer], block, named)
        if session != NO_SESSION:
            last[session] = path
        yield json.dumps(row) + "\n"


def _whole_blocks(trace: Trace) -> bool:
    """Say whether all pieces are Mooncake's blocks: 512 tokens, but for the last of a prompt."""
    if not len(trace.nodes):
        return True
    last = np.zeros(len(trace.nodes), dtype=bool)
    ends = trace.offsets[1:][np.diff(trace.offsets) > 0] - 1
    last[ends] = True
    full: npt.NDArray[np.bool_] = trace.tokens[~last] == BLOCK_TOKENS
    return bool(full.all()) and bool((trace.tokens <= BLOCK_TOKENS).all()) and not trace.answers.any()


def _blocks(path: list[int], tokens: list[int], block: int, named: dict[tuple[int, int], int]) -> dict[str, Any]:
    """Return the block hashes of a prompt: a block is named by the piece that its last token is in, and where."""
    if not path:
        return {}
    if block == BLOCK_TOKENS:
        return {"hash_ids": path}
    ids, end, piece, until = [], 0, 0, tokens[0]
    total = sum(tokens)
    while end < total:
        end = min(end + block, total)
        while until < end:
            piece += 1
            until += tokens[piece]
        ids.append(named.setdefault((path[piece], until - end), len(named)))
    return {"hash_ids": ids, "block_size": block}


def _ms(seconds: float) -> int | float:
    value = round(seconds * 1e3, 3)
    return int(value) if value == int(value) else value
