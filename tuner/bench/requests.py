"""Traffic: requests, their arrivals, and the record of each. Values that cross process boundaries."""

from __future__ import annotations

import msgspec
import numpy as np

from tuner.choices import Backend

FIRST_TOKEN_ID = 10  # below are a vocabulary's special tokens


PATHS = {Backend.SGLANG: "/generate", Backend.OPENAI: "/v1/completions", Backend.OPENAI_CHAT: "/v1/chat/completions"}


class TraceRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request of a trace: sent at `planned_s` after the start, or `think_s` after the answer to request `after`.

    Its prompt, of `isl` tokens, and its answer are `pieces` that end at `ends` tokens.
    """

    index: int
    planned_s: float
    after: int
    think_s: float
    isl: int
    osl: int
    pieces: list[int]
    ends: list[int]


# SGLang's name for a prefill or decode server that does not exist (its transfer backend `fake`).
NOBODY = "2.2.2.2"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker process sends: its lengths (taken in turn, from the start again when used up) and arrivals.

    `start` is a CLOCK_MONOTONIC time all workers share; `arrivals_s` are seconds after it (open loop), and those up to
    `due_s` are waited for. `prompts` are texts; without them token ids are drawn, unique by `seed`, after
    `shared_prefix` tokens that all requests share. With `requests` those of a trace are sent, and nothing else.
    `alone`: the server has one role, and requests say that no server of the other meets them.
    """

    host: str
    port: int
    secure: bool
    backend: Backend
    model: str
    seed: int
    prefix_seed: int
    vocabulary: int
    shared_prefix: int
    isl: tuple[int, ...]
    osl: tuple[int, ...]
    prompts: tuple[str, ...] = ()
    clients: int = 0
    arrivals_s: tuple[float, ...] = ()
    due_s: float = 0.0
    start: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    result: str = ""
    requests: tuple[TraceRequest, ...] = ()
    alone: bool = False


class StreamProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's word every quarter of a second; `exhausted` once every arrival that is due has come to its end."""

    done: int
    errors: int
    in_flight: int
    tokens: int
    silent_s: float
    exhausted: bool = False
    broken: str = ""


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """One finished request. Times are CLOCK_MONOTONIC; `planned` is when it should have been sent."""

    index: int
    planned: float
    sent: float
    first: float
    last: float
    ended: float
    isl: int
    osl: int
    prompt_tokens: int
    tokens: int
    cached: int
    chunks: int
    error: str = ""


class RequestOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """All a worker has seen.

    `unfinished` are send times, planned and actual; `tokens_by_bin` counts tokens by tenth of a second, and `gap_marks`
    says how many of `gaps_s` were there when such a bin began; `lags_s` are overshoots of a 10 ms sleep and `cpu`
    shares of a core, each with its time.
    """

    seen: list[Seen]
    unfinished: list[tuple[float, float]]
    tokens_by_bin: dict[int, int]
    gaps_s: list[float]
    gap_marks: list[tuple[int, int]]
    lags_s: list[tuple[float, float]]
    cpu: list[tuple[float, float]]
    longest_gap_s: float
    suspended_s: float


class Payloads:
    """Requests as bytes, ready to be written to a socket."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._high = max(FIRST_TOKEN_ID + 1, share.vocabulary)
        prefix = np.random.default_rng(share.prefix_seed)
        self._prefix: list[int] = prefix.integers(FIRST_TOKEN_ID, self._high, size=share.shared_prefix).tolist()
        lines = [f"POST {PATHS[share.backend]} HTTP/1.1", f"Host: {share.host}:{share.port}",
                 "Content-Type: application/json", "Accept: text/event-stream",
                 *(f"{name}: {value}" for name, value in share.headers), "Content-Length: "]  # fmt: skip
        self._head = "\r\n".join(lines).encode()

    def lengths(self, index: int) -> tuple[int, int]:
        """Return input (0: unknown, as it is a text) and output tokens asked of request `index`."""
        share = self._share
        text = share.prompts or share.backend is Backend.OPENAI_CHAT
        isl = 0 if text else share.isl[index % len(share.isl)]
        return isl, share.osl[index % len(share.osl)]

    def request(self, index: int) -> bytes:
        """Return request `index`, head and body."""
        body = self._sglang(index) if self._share.backend is Backend.SGLANG else self._openai(index)
        return self._head + str(len(body)).encode() + b"\r\n\r\n" + body

    def ids(self, index: int) -> list[int]:
        """Return the token ids of request `index`: the shared prefix, then ids no other request has."""
        length = self._share.isl[index % len(self._share.isl)]
        head = self._prefix[: length - 1]
        own = np.random.default_rng((self._share.seed, index))
        tail: list[int] = own.integers(FIRST_TOKEN_ID, self._high, size=length - len(head)).tolist()
        return head + tail

    def _text(self, index: int) -> str | None:
        prompts = self._share.prompts
        return prompts[index % len(prompts)] if prompts else None

    def _sglang(self, index: int) -> bytes:
        _, osl = self.lengths(index)
        text = self._text(index)
        sampling = {"temperature": 0.0, "max_new_tokens": osl, "ignore_eos": True}
        prompt = {"input_ids": self.ids(index)} if text is None else {"text": text}
        nobody = {"bootstrap_host": NOBODY, "bootstrap_room": index} if self._share.alone else {}
        return msgspec.json.encode({**prompt, "sampling_params": sampling, "stream": True, **nobody})

    def _openai(self, index: int) -> bytes:
        _, osl = self.lengths(index)
        text = self._text(index)
        body = {"model": self._share.model, "max_tokens": osl, "ignore_eos": True, "temperature": 0.0, "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
        if self._share.backend is Backend.OPENAI:
            return msgspec.json.encode({**body, "prompt": self.ids(index) if text is None else text})
        # chat takes no token ids: numbers as words, about as many tokens
        content = " ".join(map(str, self.ids(index))) if text is None else text
        return msgspec.json.encode({**body, "messages": [{"role": "user", "content": content}]})
