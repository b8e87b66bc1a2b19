"""Chats: ShareGPT's conversations, and logs of an OpenAI-style API, whose prompts are texts."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from hwprobe.errors import InputError
from hwprobe.parsing import ODD
from models.traffic.trace import NO_SESSION, TraceBuilder
from tuner.trace_files.fields import FilePlace
from tuner.trace_files.texts import messages_pieces, text_pieces

HUMAN = {"human", "user", "system", "tool", "function", "observation"}
MODEL = {"gpt", "chatgpt", "assistant", "bard", "bing", "model"}
# ShareGPT has no times: a conversation begins every second, and its user answers as soon as the model has.
STARTS_APART_S = 1.0
TIMES = ("timestamp", "time", "ts", "created_at", "created", "start_time", "request_time")
SESSIONS = ("session_id", "conversation_id", "chat_id", "thread_id")


def read_conversations(place: FilePlace, conversations: Any, builder: TraceBuilder) -> None:
    """Take a ShareGPT list: every turn of the model is a request whose prompt is all before it."""
    if not isinstance(conversations, list):
        raise InputError(f'{place.path}: no list of conversations ([{{"conversations": [{{"from", "value"}}]}}])')
    for number, conversation in enumerate(conversations, 1):
        place.line = number
        take_conversation(place, conversation, builder)


def take_conversation(place: FilePlace, conversation: Any, builder: TraceBuilder) -> None:
    """Take one conversation. Raises InputError that counts it."""
    if isinstance(conversation, dict):
        turns = conversation.get("conversations") or conversation.get("conversation") or conversation.get("items")
    else:
        turns = None
    if not isinstance(turns, list):
        raise place.wrong('not of the form {"conversations": [{"from": "human", "value": ...}, ...]}')
    session, start_s = place.session(place.line), STARTS_APART_S * len(place.sessions)
    pieces: list[tuple[int, int]] = []
    first = True
    for turn in turns:
        role, text = _turn(place, turn)
        new = text_pieces(text, "model" if role in MODEL else "user")
        prompt = sum(tokens for _, tokens in pieces)
        if role in MODEL and prompt and new:
            tokens = sum(size for _, size in new)
            builder.add(start_s, prompt, tokens, session=session, think_s=math.nan if first else 0.0)
            builder.add_pieces([*pieces, *new], len(new))
            first = False
        pieces = [*pieces, *new]


def _turn(place: FilePlace, turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise place.wrong('a turn is no {"from": ..., "value": ...}')
    role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(role, str) or role not in HUMAN | MODEL or not isinstance(text, str | None):
        raise place.wrong(f"a turn is from {role!r}; known: {', '.join(sorted(HUMAN | MODEL))}")
    return role, text or ""


class LogReader:
    """Reads a log of requests: a line has the body of the request, the answer or its usage, and the time."""

    def __init__(self, place: FilePlace, builder: TraceBuilder) -> None:
        self._place, self._builder = place, builder

    def read(self, line: bytes) -> None:
        """Take a line. Raises InputError naming it."""
        place = self._place
        try:
            row = msgspec.json.decode(line)
        except ODD as error:
            raise place.wrong(f"not JSON ({error}); was the file cut off?") from None
        if not isinstance(row, dict):
            raise place.wrong("not a JSON object")
        body = _part(row, "request", "body")
        answer = _part(row, "response", "answer")
        usage: dict[str, Any] = next(
            (part["usage"] for part in (answer, row) if isinstance(part.get("usage"), dict)), {}
        )
        name = next((name for name in TIMES if row.get(name) is not None), None)
        moment = answer.get("created") if name is None else row[name]
        if moment is None:
            raise place.wrong(f"no time of the request; one of {', '.join(TIMES)} must be there, or --map time=COLUMN")
        sent_s = place.after_s(place.stamp_s(moment, name or "created"), name or "created")
        pieces = self._pieces(body)
        stated = usage.get("prompt_tokens", usage.get("input_tokens"))
        isl = sum(tokens for _, tokens in pieces) if stated is None else place.tokens(stated, "prompt_tokens", 1)
        place.tokens(isl, "prompt_tokens", 1)
        osl = self._output(usage, answer, body)
        session = next((place.session(row[name]) for name in SESSIONS if row.get(name) is not None), NO_SESSION)
        self._builder.add(sent_s, isl, osl, session=session)
        self._builder.add_pieces(_cut(pieces, isl))

    def _pieces(self, body: dict[str, Any]) -> list[tuple[int, int]]:
        messages, prompt = body.get("messages"), body.get("prompt", body.get("text"))
        if isinstance(messages, list):
            return messages_pieces(self._place, messages)
        return text_pieces(prompt) if isinstance(prompt, str) else []

    def _output(self, usage: dict[str, Any], answer: dict[str, Any], body: dict[str, Any]) -> int:
        """Return the tokens of the answer: as its usage says, else by its text, else as many as were asked for."""
        stated = usage.get("completion_tokens", usage.get("output_tokens"))
        if stated is not None:
            return self._place.tokens(stated, "completion_tokens")
        choices = answer.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            message = choices[0].get("message")
            text = message.get("content") if isinstance(message, dict) else choices[0].get("text")
            return sum(tokens for _, tokens in text_pieces(text)) if isinstance(text, str) else 0
        most = body.get("max_tokens", body.get("max_completion_tokens"))
        if most is None:
            raise self._place.wrong("no output tokens: neither usage.completion_tokens nor an answer is there")
        return self._place.tokens(most, "max_tokens")


def _part(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the part of a row under the first of these names, the row itself where it has none."""
    part = next((row[name] for name in names if isinstance(row.get(name), dict)), row)
    inner = part.get("body")
    return inner if isinstance(inner, dict) else part


def _cut(pieces: list[tuple[int, int]], tokens: int) -> list[tuple[int, int]]:
    """Return the pieces that fit into so many tokens: what the text was estimated beyond them is left out."""
    fitting = []
    for key, size in pieces:
        if tokens <= 0:
            break
        fitting.append((key, min(size, tokens)))
        tokens -= size
    return fitting
