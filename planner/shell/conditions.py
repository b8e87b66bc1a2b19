"""The conditions of a shell script: `[ ... ]`, `[[ ... ]]` and `test`, true, false, or not known."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from planner.shell.values import Text

_NUMBERS = {
    "-eq": int.__eq__,
    "-ne": int.__ne__,
    "-lt": int.__lt__,
    "-le": int.__le__,
    "-gt": int.__gt__,
    "-ge": int.__ge__,
}


def holds(words: Sequence[Text]) -> bool | None:
    """Return whether a test holds, None where a value in it is not known."""
    inside = list(words[1:])
    if inside and inside[-1].raw in ("]", "]]"):
        inside.pop()
    return _either(inside)


def _either(words: list[Text]) -> bool | None:
    parts = _split(words, ("||", "-o"))
    if len(parts) == 1:
        return _all(parts[0])
    truths = [_all(part) for part in parts]
    return True if True in truths else None if None in truths else False


def _all(words: list[Text]) -> bool | None:
    parts = _split(words, ("&&", "-a"))
    truths = [_one(part) for part in parts]
    return False if False in truths else None if None in truths else True


def _split(words: list[Text], operators: tuple[str, ...]) -> list[list[Text]]:
    parts: list[list[Text]] = [[]]
    for word in words:
        if word.raw in operators:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _one(words: list[Text]) -> bool | None:
    if words and words[0].raw == "!":
        inner = _one(words[1:])
        return None if inner is None else not inner
    if words and words[0].raw == "(" and words[-1].raw == ")":
        return _either(words[1:-1])
    if len(words) == 2 and words[0].raw in ("-n", "-z"):
        empty = words[1].raw == "" if words[1].known else None
        return None if empty is None else empty is (words[0].raw == "-z")
    if len(words) == 1:  # [ $X ] of an empty X, and [ -n ] of nothing, are such, too
        return None if not words[0].known else words[0].raw != "" and words[0].raw != "-n"
    return _compared(words) if len(words) == 3 and words[0].known and words[2].known else None


def _compared(words: list[Text]) -> bool | None:
    lhs, sign, rhs = (word.raw for word in words)
    if sign in _NUMBERS:
        lhs, rhs = lhs.strip() or "0", rhs.strip() or "0"
        whole = re.fullmatch(r"-?\d{1,15}", lhs) and re.fullmatch(r"-?\d{1,15}", rhs)
        return bool(_NUMBERS[sign](int(lhs), int(rhs))) if whole else None
    if sign in ("=", "=="):
        return fnmatch.fnmatchcase(lhs, rhs)
    if sign == "!=":
        return not fnmatch.fnmatchcase(lhs, rhs)
    return None
