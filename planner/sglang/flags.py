"""The command-line flags SGLang really has, release by release, read from its wheels (flags.json)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from packaging.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of a release. `type` names SGLang's converter; `nargs` and `const` are argparse's.

    `deprecated` holds what SGLang says to use instead; `refused` marks a flag that stops the launch.
    `since` and `until` are the first and last release in which it looked exactly so.
    """

    dest: str
    names: tuple[str, ...]
    since: str
    until: str
    type: str | None = None
    nargs: int | str | None = None
    choices: tuple[str | int | float, ...] | None = None
    default: Any = None
    const: bool | None = None
    deprecated: str | None = None
    refused: bool = False
    required: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def is_switch(self) -> bool:
        return self.nargs == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    versions: tuple[str, ...]
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSet:
    """The flags of one release."""

    release: str
    by_name: dict[str, Flag]
    by_dest: dict[str, Flag]

    def spelled(self, word: str) -> list[str]:
        """Return the names `word` may stand for: itself, or those it is the beginning of (as argparse does)."""
        if word in self.by_name:
            return [word]
        return [name for name in self.by_name if name.startswith(word)]


@cache
def _table() -> _Table:
    return msgspec.json.decode(files("planner").joinpath("sglang/flags.json").read_bytes(), type=_Table)


def listed_releases() -> tuple[str, ...]:
    """Return the releases whose flags were read, oldest first."""
    return _table().versions


@cache
def flags_of(version: Version) -> FlagSet:
    """Return the flags of `version`: those of the newest listed release that is not newer."""
    releases = listed_releases()
    release = next((r for r in reversed(releases) if Version(r) <= version), releases[0])
    place = {name: index for index, name in enumerate(releases)}
    release_place = place[release]
    present = [flag for flag in _table().flags if place[flag.since] <= release_place <= place[flag.until]]
    by_dest: dict[str, Flag] = {}
    for flag in present:
        if flag.dest not in by_dest or by_dest[flag.dest].deprecated is not None:
            by_dest[flag.dest] = flag
    return FlagSet(release=release, by_name={name: f for f in present for name in f.names}, by_dest=by_dest)


def life_of(name: str) -> tuple[str, str] | None:
    """Return the first and last listed release that has a flag of this name, or None."""
    flags = [flag for flag in _table().flags if name in flag.names]
    if not flags:
        return None
    return min((f.since for f in flags), key=Version), max((f.until for f in flags), key=Version)


def first_release_of(dest: str) -> tuple[str, str, str] | None:
    """Return (flag name, first release, last release) of SGLang's field `dest`, or None if none ever had it."""
    flags = [flag for flag in _table().flags if flag.dest == dest]
    if not flags:
        return None
    newest = max(flags, key=lambda f: Version(f.until))
    return newest.name, min((f.since for f in flags), key=Version), newest.until


@cache
def flags_by_name() -> dict[str, Flag]:
    """Return the flags of all listed releases by name, each as the newest release has it."""
    return {name: flag for flag in _table().flags for name in flag.names}
