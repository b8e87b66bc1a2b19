"""What compose and Kubernetes put into a text before anything runs: `${NAME:-default}` and `$(NAME)`."""

from __future__ import annotations

import re
import shlex

from planner.assumption import Assumption
from planner.shell.scope import Scope
from planner.shell.values import Text, joined, unknown

_COMPOSE = re.compile(
    r"\$\$|\$\{(?P<braced>[A-Za-z_]\w*)(?:(?P<op>:?[-?+])(?P<rest>[^}]*))?\}|\$(?P<bare>[A-Za-z_]\w*)"
)
_KUBERNETES = re.compile(r"\$\$|\$\((?P<name>[A-Za-z_][\w.-]*)\)")
_TEMPLATE = re.compile(
    r"\{\{-?\s*(?P<name>[\w.$-]+)\s*(?:\|\s*default\s+\"?(?P<default>[\w./:-]+)\"?[^}]*|[^}]*?)-?\}\}"
)


def split_words(raw: str) -> list[str]:
    """Split a text as a shell splits words, without expanding anything; unknown places stay whole."""
    places = re.findall(r"\0[^\0]*\0", raw)
    masked = re.sub(r"\0[^\0]*\0", "\x01", raw)
    try:
        words = shlex.split(masked)
    except ValueError:
        words = masked.split()
    unknowns = iter(places)
    return [re.sub("\x01", lambda _: next(unknowns, ""), word) for word in words]


def compose_text(text: str, scope: Scope) -> Text:
    """Return a text as compose reads it: its variables are those of the caller and of .env, not of the container."""
    outer = Scope(given=scope.given, caller=scope.caller, used=scope.used)
    pieces, at = [], 0
    for match in _COMPOSE.finditer(text):
        pieces += [Text(text[at : match.start()]), _compose_variable(match, outer)]
        at = match.end()
    return joined([*pieces, Text(text[at:])])


def _compose_variable(match: re.Match[str], outer: Scope) -> Text:
    if match[0] == "$$":
        return Text("$")
    name, operator, rest = match["braced"] or match["bare"], match["op"] or "", match["rest"] or ""
    value = outer.look(name)
    known_text = value if isinstance(value, Text) else None
    empty = known_text is None or (operator.startswith(":") and known_text.raw == "")
    if operator.endswith("+"):
        return Text("") if empty else Text(rest)
    if empty and operator.endswith("-"):
        return Text(rest).taking(Assumption(name=name, value=rest, why="its default in the file"))
    return unknown(match[0], unset=True) if known_text is None else known_text


def kubernetes_text(text: str, scope: Scope, *, keep: bool = False) -> Text:
    """Return a text as Kubernetes reads it: `$(NAME)` of the container's environment, `$$` a dollar.

    With `keep`, unknown names stay unchanged, for the shell that reads the text next.
    """
    pieces, at = [], 0
    for match in [*_KUBERNETES.finditer(text)]:
        pieces += [_templated(text[at : match.start()], scope), _kubernetes_variable(match, scope, keep=keep)]
        at = match.end()
    return joined([*pieces, _templated(text[at:], scope)])


def _kubernetes_variable(match: re.Match[str], scope: Scope, *, keep: bool) -> Text:
    if match[0] == "$$":
        return Text("$")
    value = scope.look(match["name"])
    if isinstance(value, Text) and value.known:
        return value
    return Text(match[0]) if keep else unknown(match[0])


def _templated(text: str, scope: Scope) -> Text:
    """Return a text with its template's placeholders filled in where they are given or have a default."""
    pieces, at = [], 0
    for match in _TEMPLATE.finditer(text):
        value, default = scope.look(match["name"]), match["default"]
        if isinstance(value, Text):
            piece = value
        elif default is not None:
            piece = Text(default).taking(
                Assumption(name=match["name"], value=default, why="its default in the template")
            )
        else:
            piece = unknown(match[0])
        pieces += [Text(text[at : match.start()]), piece]
        at = match.end()
    return joined([*pieces, Text(text[at:])])


def literal_dollars(text: str, scope: Scope) -> Text:
    """Return a word that no shell reads: `$(NAME)`, `$NAME` and `${NAME}` are variables of the file's author."""
    pieces, at = [], 0
    for match in re.finditer(r"\$\{(\w+)\}|\$\((\w+)\)|\$([A-Za-z_]\w*)", text):
        name = match[1] or match[2] or match[3]
        value = scope.look(name)
        pieces += [_templated(text[at : match.start()], scope), value if isinstance(value, Text) else unknown(match[0])]
        at = match.end()
    return joined([*pieces, _templated(text[at:], scope)])
