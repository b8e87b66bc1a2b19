"""systemd units: values quoted as ExecStart= and Environment= want them, and the same read back.

The rules are those of systemd.syntax(7) and systemd.service(5): double quotes with C escapes, `%%` for a per cent
sign, and in commands `$$` for a dollar.
"""

from __future__ import annotations

from collections.abc import Iterator

# Stands before a `$` or `%` that was doubled: no variable and no specifier. No word can hold a NUL of its own.
LITERAL = "\0"

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "s": " "}
_LENGTHS = {"x": 2, "u": 4, "U": 8}


def unit_quote(value: str) -> str:
    """Return a value as one quoted word of Environment=."""
    text = "".join(_ESCAPES.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 32 else char) for char in value)
    return '"' + text.replace("%", "%%") + '"'


def exec_quote(value: str) -> str:
    """Return a value as one word of ExecStart=, bare where it is plain."""
    plain = value and all(char.isascii() and (char.isalnum() or char in "-_./:=,+@") for char in value)
    return value if plain else unit_quote(value).replace("$", "$$")


def assignments_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield the (key, value) lines of a unit file, continued lines joined, comments left out."""
    pending = ""
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith(("#", ";")) or (not line and not pending):
            continue
        pending += " " + line.removesuffix("\\") if pending else line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        key, equals, value = pending.partition("=")
        if equals:
            yield key.strip(), value.strip()
        pending = ""


def unit_words(value: str, *, command: bool) -> list[str]:
    """Split a value into words as systemd does; a doubled dollar or per cent sign comes back marked as literal."""
    words: list[str] = []
    word: str | None = None
    quote, at = "", 0
    while at < len(value):
        char = value[at]
        if char == "\\":
            text, at = _unescape(value, at + 1)
            word = (word or "") + text
            continue
        if char in "'\"" and (quote == char or (not quote and word is None)):
            word, quote = word or "", "" if quote else char
        elif char.isspace() and not quote:
            words += [] if word is None else [word]
            word = None
        else:
            pair = value[at : at + 2]
            doubled = pair == "%%" or (command and pair == "$$")
            word = (word or "") + (LITERAL + char if doubled else char)
            at += doubled
        at += 1
    return words if word is None else [*words, word]


def _unescape(value: str, at: int) -> tuple[str, int]:
    """Return the character of a C escape, whose letter is at `at`, and where the text goes on."""
    letter = value[at : at + 1]
    if letter in _LENGTHS:
        end = at + 1 + _LENGTHS[letter]
        try:
            return chr(int(value[at + 1 : end], 16)), end
        except (ValueError, OverflowError):
            return letter, at + 1
    return _UNESCAPES.get(letter, letter), at + 1
