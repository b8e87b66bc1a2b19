"""Variables of a shell script: assignments, declarations, and the builtins that change nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from planner.shell.expansion import expand, expand_text
from planner.shell.scope import Scope, Value
from planner.shell.syntax import Assignment, Simple
from planner.shell.values import Text, joined, unknown

KEYED = re.compile(r"\[[^\]]+\]=")
QUOTES = "\"' "
DECLARING = ("export", "declare", "local", "readonly", "typeset")


def assign(assignment: Assignment, scope: Scope) -> None:
    """Give a variable the value of an assignment; --set has the word where the file leaves it open."""
    name = assignment.name
    before: Value | None = scope.variables.get(name)
    if assignment.index is None and not assignment.append:
        for element in [key for key in scope.variables if key.startswith(f"{name}[")]:
            del scope.variables[element]
    if assignment.items is not None:
        items = [text for word in assignment.items for text in expand(word, scope)]
        if items and all(KEYED.match(item.raw) for item in items):
            _assign_keys(name, items, scope)
            return
        old = before if isinstance(before, list) else [before] if before is not None else []
        scope.variables[name] = [*old, *items] if assignment.append else items
        return
    text = expand_text(assignment.value, scope)
    if not text.known and name in scope.given:
        scope.used.add(name)
        text = Text(scope.given[name])
    if assignment.index is not None:
        scope.variables[name] = unknown(f"${name}")
        scope.variables[f"{name}[{assignment.index.strip(QUOTES)}]"] = text
    elif assignment.append and before is None:
        inherited = scope.look(name)
        scope.variables[name] = joined([inherited, text]) if isinstance(inherited, Text) else text
    elif assignment.append and isinstance(before, list):
        scope.variables[name] = [joined([before[0], text]), *before[1:]] if before else [text]
    else:
        scope.variables[name] = joined([before, text]) if assignment.append and isinstance(before, Text) else text


def _assign_keys(name: str, items: Sequence[Text], scope: Scope) -> None:
    """Keep `NAME=([key]=value ...)` by its keys; all elements together, `${NAME[@]}`, are not known."""
    scope.variables[name] = unknown(f"${name}")
    for item in items:
        key, _, value = item.raw[1:].partition("]=")
        scope.variables[f"{name}[{key.strip(QUOTES)}]"] = Text(value, item.assumed)


def declare(node: Simple, words: Sequence[Text], scope: Scope) -> bool:
    """Run `export` and its like: their assignments, and which names the children see."""
    for assignment in node.assignments:
        assign(assignment, scope)
    if words[0].raw == "export":
        scope.exported |= {assignment.name for assignment in node.assignments}
        scope.exported |= {word.raw for word in words[1:] if word.known and not word.raw.startswith("-")}
    return True


def _set(words: Sequence[Text], scope: Scope) -> bool | None:
    if len(words) > 1 and words[1].raw == "--":
        scope.positional = list(words[2:])
    return True


def _shift(words: Sequence[Text], scope: Scope) -> bool | None:
    count = int(words[1].raw) if len(words) > 1 and words[1].raw.isdecimal() else 1
    scope.positional = scope.positional[count:] if scope.positional is not None else None
    return True


def _unset(words: Sequence[Text], scope: Scope) -> bool | None:
    for word in words[1:]:
        scope.variables.pop(word.raw, None)
    return True


def _read(words: Sequence[Text], scope: Scope) -> bool | None:
    for word in words[1:]:
        if word.known and re.fullmatch(r"[A-Za-z_]\w*", word.raw):
            scope.variables[word.raw] = unknown(f"${word.raw}")
    return None


def _passed(words: Sequence[Text], scope: Scope) -> bool | None:
    return True


def _failed(words: Sequence[Text], scope: Scope) -> bool | None:
    return False


VARIABLES: dict[str, Callable[[Sequence[Text], Scope], bool | None]] = {
    "set": _set, "shift": _shift, "unset": _unset, "read": _read, "mapfile": _read, "readarray": _read,
    ":": _passed, "true": _passed, "false": _failed, "trap": _passed, "alias": _passed, "break": _passed,
    "continue": _passed, "wait": _passed,
}  # fmt: skip
