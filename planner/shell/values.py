"""Texts of a launch file: known or with unknown parts, and the assumptions behind the known ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from planner.assumption import Assumption

# Encloses the source text of an unknown part. Files cannot hold a NUL: readers remove them.
_MARK = "\0"
_UNSET, _OPAQUE = "?", "!"
_PLACE = re.compile(rf"{_MARK}([{_UNSET}{_OPAQUE}])(.*?){_MARK}", re.DOTALL)
_NAMES = re.compile(r"\$\{?#?([A-Za-z_]\w*)|\$\(([A-Za-z_]\w*)\)|\{\{-?\s*([\w.$-]+)|<([\w./ -]+)>")
LONGEST = 100_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text of which places may be unknown, and the assumptions behind the known ones."""

    raw: str
    assumed: tuple[Assumption, ...] = ()

    def __post_init__(self) -> None:
        if type(self.raw) is not str:  # a text that knows its place in a file
            object.__setattr__(self, "raw", str(self.raw))

    @property
    def known(self) -> bool:
        return _MARK not in self.raw

    @property
    def source(self) -> str:
        """The text with unknown places as they stand in the file."""
        return _PLACE.sub(lambda match: match[2], self.raw)

    @property
    def unset_only(self) -> bool:
        """Whether it is a single unset variable: a shell makes no word of it."""
        match = _PLACE.fullmatch(self.raw)
        return match is not None and match[1] == _UNSET

    @property
    def name(self) -> str:
        """The variable that an unknown text stands for, or the text itself if it is not a variable."""
        match = _NAMES.search(self.source)
        return next((group for group in match.groups() if group), self.source) if match else self.source

    def taking(self, *more: Assumption) -> Text:
        return Text(self.raw, merged([self.assumed, more]))


def unknown(source: str, *, unset: bool = False) -> Text:
    """Return a text that is not known here; `unset` for a variable that is set nowhere in the file."""
    return Text(f"{_MARK}{_UNSET if unset else _OPAQUE}{source.replace(_MARK, '')}{_MARK}")


def joined(parts: Iterable[Text], separator: str = "") -> Text:
    """Return the texts as one; beyond the length of any launch line it becomes unknown."""
    listed = list(parts)
    if sum(len(part.raw) for part in listed) > LONGEST:
        return unknown("...")
    return Text(separator.join(part.raw for part in listed), merged(part.assumed for part in listed))


def merged(groups: Iterable[Iterable[Assumption]]) -> tuple[Assumption, ...]:
    """Return all assumptions once, in order."""
    return tuple(dict.fromkeys(item for group in groups for item in group))
