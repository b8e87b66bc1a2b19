"""SGLang versions: parsing, order, and the releases sgtune knows."""

from __future__ import annotations

from functools import cache

from packaging.version import InvalidVersion, Version

from hwprobe.errors import InputError

OLDEST = "0.4.3"
NEWEST = "0.5.23"
# What the command line says for the newest release known, so that --help need not load this module.
NEWEST_ALIAS = "newest"
# A part of a release number beyond this is a mistake: the largest in use are years.
LARGEST_PART = 9999


def parse_version(text: str) -> Version:
    """Parse an SGLang version ('0.4.5.post3', 'v0.5.12', 'newest'). Raises InputError with an example."""
    name = NEWEST if text.strip() == NEWEST_ALIAS else text.strip()
    version: Version | None
    try:
        version = Version(name)
    except (InvalidVersion, ValueError):  # ValueError: a number of more digits than int() takes
        version = None
    if version is None or version.epoch or max(*version.release, version.post or 0) > LARGEST_PART:
        shown = name if len(name) <= 40 else f"{name[:40]}... ({len(name)} characters)"
        raise InputError(
            f"'{shown}' is not an SGLang version; write it as in --sglang-version {NEWEST} (or 0.4.5.post3)"
        )
    if version < Version(OLDEST):
        raise InputError(f"SGLang {version} is older than sgtune models; the oldest is {OLDEST}")
    return version


def at_least(version: Version, text: str) -> bool:
    """Say whether the version is the one named, or newer."""
    return version >= _release(text)


_release = cache(Version)  # a search asks thousands of times for the same few
