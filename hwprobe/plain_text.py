"""Text that a server, a file or a person gave us, made fit to be shown and kept: nothing in it acts on a terminal."""

from __future__ import annotations

import re

# C0 and C1 control characters but tab and newline, what reorders text, and halves of characters (lone surrogates).
_ACTING: dict[int, str] = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029],
    "\N{REPLACEMENT CHARACTER}",
)
_ACTING |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): "\n"}
_MARKING = re.compile(r"[\\\[\]`*$]")
LONGEST = 20_000


def clean(text: str, most: int = LONGEST) -> str:
    """Return the text without control characters, in characters that can be encoded, cut after `most` of them."""
    cut = text[:most].replace("\r\n", "\n").translate(_ACTING)
    return cut.encode("utf-8", errors="replace").decode("utf-8") + (" ..." if len(text) > most else "")


def as_markdown(text: str) -> str:
    """Return a text that Markdown shows unchanged: no link, picture, style or formula in it takes effect."""
    return _MARKING.sub(r"\\\g<0>", clean(text))


def one_line(text: str, most: int = 200) -> str:
    """Return the text as one clean line."""
    return " ".join(clean(text, most).split())
