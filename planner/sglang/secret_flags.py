"""SGLang flags whose value must never stand in a file, and command lines without them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

SECRET_FLAGS = ("--api-key", "--admin-api-key", "--ssl-keyfile-password")
# The same as SGLang's /server_info names them.
SECRET_FIELDS = tuple(flag.removeprefix("--").replace("-", "_") for flag in SECRET_FLAGS)
# A flag of its own that begins as a secret one does.
NO_SECRETS = ("--ssl-keyfile",)
SHORTEST = len("--a")
HIDDEN = "(hidden)"


def is_secret(word: str) -> bool:
    """Whether a word is a secret flag, whole or cut short as argparse takes it, with or without `=VALUE`."""
    name = word.partition("=")[0].replace("_", "-")
    if name in NO_SECRETS or len(name) < SHORTEST or not name.startswith("--"):
        return False
    return any(flag.startswith(name) for flag in SECRET_FLAGS)


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return words without secret flags and their values."""
    public_words: list[str] = []
    skip = False
    for word in words:
        if skip:  # argparse takes the next word as the value, whatever it looks like but a flag
            skip = False
            if not word.startswith("--"):
                continue
        if is_secret(word):
            skip = "=" not in word
        else:
            public_words.append(word)
    return public_words


def clean_command(command: str) -> str:
    """Return a command line without its secrets, '' where there is no such line."""
    try:
        return shlex.join(without_secrets(shlex.split(command)))
    except ValueError:
        return ""
