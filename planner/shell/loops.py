"""The loops of a shell script: their variable, and the values it takes."""

from __future__ import annotations

import re

from planner.shell.expansion import arithmetic, expand
from planner.shell.scope import Scope
from planner.shell.syntax import For
from planner.shell.values import Text

MOST_TURNS = 64
_COUNTED = re.compile(
    r"\s*(\w+)\s*=\s*(.+?)\s*;\s*\1\s*(<=?)\s*(.+?)\s*;\s*(?:\1\+\+|\+\+\1|\1\s*\+=\s*1)\s*", re.DOTALL
)


def loop_variable(node: For) -> str:
    """Return the variable of a loop; `i` for a counted one of another form."""
    if node.counted is None:
        return node.name
    counted = _COUNTED.fullmatch(node.counted)
    return counted[1] if counted else "i"


def loop_values(node: For, scope: Scope) -> list[Text] | None:
    """Return the values a loop runs over, or None when they are not known."""
    if node.counted is not None:
        counted = _COUNTED.fullmatch(node.counted)
        ends = [arithmetic(counted[group], scope, "") for group in (2, 4)] if counted else []
        if counted is None or not all(end.known for end in ends):
            return None
        last = int(ends[1].raw) + (counted[3] == "<=")
        return [Text(str(number)) for number in range(int(ends[0].raw), last)[:MOST_TURNS]]
    if node.words is None:
        return list(scope.positional or ())
    values = [text for word in node.words for text in expand(word, scope)]
    return values if all(text.known for text in values) else None
