"""Shell text as commands of words, with marks on the dollars and operators that the shell would leave alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

# Stands before a `$` that is no variable and an operator that is none. No word can hold a NUL of its own.
LITERAL = "\0"
OPERATORS = ("&&", "||", ";", "|", "&", ">", ">>", "2>&1", "2>", "<")
_SPECIAL = ";|&<>"


def literal(word: str) -> str:
    """Return a word that no shell reads, so that it ends no command."""
    return LITERAL + word if word in OPERATORS else word


def plain(word: str) -> str:
    """Return a word without its marks."""
    return word.replace(LITERAL, "")


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words of every command line; quoted newlines stay inside their word.

    A text whose quotes do not close (a here-document with an apostrophe) is read line by line instead.
    """
    lines = _logical_lines(text)
    whole = lines is not None
    for line in lines if lines is not None else text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=not whole)
        except ValueError:
            words = line.split()
        if words:
            yield words


def _logical_lines(text: str) -> list[str] | None:
    """Join continued lines, leave comments out, mark literal dollars; None when a quote stays open."""
    lines, line, quote, at = [], "", "", 0
    while at < len(text):
        char, pair = text[at], text[at : at + 2]
        if quote == "'":
            line += LITERAL + char if char in _SPECIAL + "$" else char
            quote = "" if char == "'" else quote
        elif char == "\\" and len(pair) == 2:
            line += _escaped(pair, text[at : at + 3], quote)
            at += 2 if pair == "\\\r" and text[at : at + 3] == "\\\r\n" else 1
        elif char in "'\"" and char in (quote or char):
            line += char
            quote = "" if quote else char
        elif char == "#" and not quote and (not line or line[-1].isspace()):
            at = (text + "\n").index("\n", at) - 1
        elif char == "\n" and not quote:
            lines.append(line)
            line = ""
        else:
            line += LITERAL + char if quote and char in _SPECIAL else char
        at += 1
    return None if quote else [*lines, line]


def _escaped(pair: str, three: str, quote: str) -> str:
    """Return what a backslash and its character become; between double quotes few characters are escaped."""
    if pair[1] == "\n" or three == "\\\r\n":
        return "" if quote else " "
    if pair[1] == "$" or (pair[1] in _SPECIAL and not quote):
        return LITERAL + pair[1]
    return pair
