"""Every error a user can meet, as one tree. Lives in the leftmost package so that all can raise it.

SgtuneError                 exit 1: failed while working
+-- InputError              exit 2: bad usage or input, nothing was started
    +-- UnsupportedModel    exit 2: a model config this version has no equations for

A target that cannot be met is an answer, not an error: the command prints it and exits 3.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SgtuneError(Exception):
    """Something failed while working. The message says what, where, and what to do next."""

    exit_code = 1


class InputError(SgtuneError):
    """The question itself is wrong: a flag, a file, a name. Nothing was started or written."""

    exit_code = 2


class UnsupportedModel(InputError):
    """The model config describes an architecture sgtune has no equations for."""


def did_you_mean(word: str, valid_words: Iterable[str]) -> str:
    """Return a sentence fragment naming the nearest known word, or the whole list if none is near."""
    names = sorted(valid_words)
    near = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.5)
    near = near or [name for name in names if word and word.lower() in name][:2]
    if near:
        return "did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    return "known: " + ", ".join(names)
