"""Requests of a trace as they are sent: prompts made of its pieces, so that what is shared is really the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from tuner.bench.requests import FIRST_TOKEN_ID, Payloads, Share, TraceRequest


@dataclass(slots=True)
class PieceTokens:
    """Token ids of pieces: equal for equal pieces, and different from the first token on for others.

    That holds for as many pieces as there are token ids; beyond, two may begin alike by chance. `told` are the answers
    that the server itself gave.
    """

    seed: int
    vocabulary: int
    told: dict[int, list[int]] = field(default_factory=dict)

    def ids(self, piece: int, tokens: int) -> list[int]:
        """Return the token ids of a piece."""
        if piece in self.told and len(self.told[piece]) >= tokens:
            return self.told[piece][:tokens]
        span = max(2, self.vocabulary - FIRST_TOKEN_ID)
        rest = np.random.default_rng((self.seed, piece)).integers(0, span, size=max(0, tokens - 1))
        return [FIRST_TOKEN_ID + piece % span, *(rest + FIRST_TOKEN_ID).tolist()]


class TracePayloads(Payloads):
    """Requests of a trace as bytes."""

    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self._requests = {request.index: request for request in share.requests}
        self.pieces = PieceTokens(share.prefix_seed, share.vocabulary)

    def lengths(self, index: int) -> tuple[int, int]:
        request = self._requests[index]
        return request.isl, request.osl

    def ids(self, index: int) -> list[int]:
        request = self._requests[index]
        ids: list[int] = []
        start = 0
        for piece, end in zip(request.pieces, request.ends, strict=True):
            if start >= request.isl:
                break
            ids += self.pieces.ids(piece, min(end, request.isl) - start)
            start = end
        return ids

    def learn(self, request: TraceRequest, final: bytes) -> None:
        """Take the answer that a server gave as the tokens of its piece, where it names them."""
        if len(request.ends) < 2 or request.ends[-1] <= request.isl:
            return
        _, _, text = final.partition(b"data:")
        try:
            answer = msgspec.json.decode(text, type=_Answer)
        except (msgspec.MsgspecError, ValueError):
            return
        if len(answer.output_ids) == request.osl:
            self.pieces.told[request.pieces[-1]] = answer.output_ids


class _Answer(msgspec.Struct):
    output_ids: list[int] = []
