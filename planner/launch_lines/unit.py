"""Finds the SGLang server of a systemd unit, or of a Podman container unit (quadlet)."""

from __future__ import annotations

import re
from dataclasses import replace

from planner.launch_lines.servers import FoundServer, servers_of_command
from planner.sglang.unit_words import LITERAL, assignments_of, unit_words
from planner.shell.scope import Scope
from planner.shell.script import Started
from planner.shell.values import Text, joined, unknown

_VARIABLE = re.compile(r"(?<!\0)\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_SPECIFIER = re.compile(r"(?<!\0)%[a-zA-Z]")


def servers_of_unit(text: str, scope: Scope) -> list[FoundServer]:
    """Return the servers among a unit's ExecStart= lines, or a container unit's Exec=; its Environment= counts."""
    commands: list[list[str]] = []
    image: str | None = None
    for key, value in assignments_of(text.replace("\r\n", "\n")):
        if key == "Environment":
            for word in unit_words(value, command=False):
                name, _, setting = word.partition("=")
                scope.variables[name] = _plain(setting)
                scope.exported.add(name)
        elif key == "Image":
            image = value.strip()
        elif key in ("ExecStart", "Exec"):
            commands.append(unit_words(re.sub(r"^[-@:+!]+", "", value), command=True))
    row = next((n for n, line in enumerate(text.splitlines(), 1) if line.startswith(("ExecStart=", "Exec="))), 1)
    servers: list[FoundServer] = []
    for words in commands:
        texts = tuple(piece for word in words for piece in _expanded(word, scope))
        servers += servers_of_command(Started(words=texts, line=row, scope=scope))
    return [server if server.image else replace(server, image=image) for server in servers]


def _expanded(word: str, scope: Scope) -> list[Text]:
    """Return a word with its variables as systemd puts them in: `$NAME` alone is split, `${NAME}` never."""
    alone = _VARIABLE.fullmatch(word)
    if alone is not None and alone[2]:
        value = scope.look(alone[2])
        text = value if isinstance(value, Text) else unknown(word, unset=True)
        return [Text(piece, text.assumed) for piece in text.raw.split()] if text.known else [text]
    pieces, at = [], 0
    for match in _VARIABLE.finditer(word):
        value = scope.look(match[1] or match[2])
        pieces += [_plain(word[at : match.start()]), value if isinstance(value, Text) else unknown(match[0])]
        at = match.end()
    return [joined([*pieces, _plain(word[at:])])]


def _plain(text: str) -> Text:
    """Return a text without its marks; specifiers such as %i are known to systemd alone."""
    pieces, at = [], 0
    for match in _SPECIFIER.finditer(text):
        pieces += [Text(text[at : match.start()].replace(LITERAL, "")), unknown(match[0])]
        at = match.end()
    return joined([*pieces, Text(text[at:].replace(LITERAL, ""))])
