"""Texts as pieces of a prompt: equal beginnings give equal pieces. No tokenizer: tokens are estimated by characters."""

from __future__ import annotations

import json
from typing import Any

from tuner.trace_files.fields import FilePlace, key_of

# English text in DeepSeek's vocabulary, about; a trace that states its tokens is scaled to them.
CHARACTERS_PER_TOKEN = 4
PIECE_TOKENS = 32
PIECE_CHARACTERS = PIECE_TOKENS * CHARACTERS_PER_TOKEN


def text_pieces(text: str, role: str = "") -> list[tuple[int, int]]:
    """Return a text as pieces of equal length, (key, tokens); `role` tells equal texts of two speakers apart."""
    pieces = []
    for start in range(0, len(text), PIECE_CHARACTERS):
        part = text[start : start + PIECE_CHARACTERS]
        pieces.append((key_of(f"{role}\0{part}"), max(1, round(len(part) / CHARACTERS_PER_TOKEN))))
    return pieces


def messages_pieces(place: FilePlace, messages: list[Any]) -> list[tuple[int, int]]:
    """Return the messages of an OpenAI request as pieces. Raises InputError for what is no message."""
    pieces = []
    for message in messages:
        if not isinstance(message, dict):
            raise place.wrong('a message is no {"role": ..., "content": ...}')
        content = message.get("content") or ""
        text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
        calls = message.get("tool_calls")
        text += json.dumps(calls, sort_keys=True) if calls else ""
        pieces += text_pieces(text, str(message.get("role", "")))
    return pieces
