"""Values and texts no sound file holds, and how the fuzzer puts them into one."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

TOKENS = (
    b"null", b"[]", b"{}", b"-1", b"0", b"1e400", b"-1e308", b"NaN", b"Infinity", b"9" * 5000, b"1e12", b"true", b'""',
    b"\x00", b"\xff\xfe", b"\x1b[31m", b"[bold]", b"[/]", b"../../..", b"/dev/zero", b"A" * 300, b'"\\ud800"',
    b"\xe2\x80\xae",
    b"$(touch canary)", b"`touch canary`", b"\n---\n", b"&a [*a]", b"[" * 300, b"{" * 300, b"a." * 200, b"\r\n", b"'",
    b'"',
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, [], {}, -1, 0, 1e300, -1e300, 10**30, 1e12, 0.5, True, "", "x", "A" * 300, "\x1b[31m", "[bold]x[/]", "$(x)\n",
    [[]],
    [1, 2], {"a": 1}, "/dev/zero", "0.5.12", "h200x8", 1e-300,
)  # fmt: skip
NUMBERS = (
    "-1",
    "0",
    "1e12",
    "nan",
    "inf",
    "-inf",
    "9" * 400,
    "1e400",
    "0.5",
    "",
    "x",
    "\u0663",
    "1_0",
    " 1",
    "0x10",
    "1e-320",
)


def mutated(data: bytes, dice: random.Random, name: str) -> bytes:
    """Return a text with one to four things wrong."""
    if name.endswith((".json", ".jsonl")) and dice.random() < 0.5:
        return _other_values(data, dice)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice((1, 4, 40, 400)))
        deed = dice.randrange(6)
        if deed == 0 and data:
            data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        elif deed == 1:
            data = data[:at] + data[end:]
        elif deed == 2:
            data = data[:at] + data[at:end] * dice.choice((2, 3, 50)) + data[end:]
        elif deed == 3:
            data = data[:at] + dice.choice(TOKENS) + data[end if dice.random() < 0.5 else at :]
        elif deed == 4:
            data = data[:at]
        else:
            lines = data.splitlines(keepends=True)
            dice.shuffle(lines)
            data = b"".join(lines)
    return data


def mutated_json_lines(data: bytes, dice: random.Random) -> list[bytes]:
    """Return lines of JSON with some values of one of them replaced, removed or added."""
    return _other_values(data, dice).split(b"\n")


def _other_values(data: bytes, dice: random.Random) -> bytes:
    """Replace, remove or add a few values of JSON, or of one line of JSON lines."""
    lines = data.split(b"\n")
    place = dice.randrange(len(lines)) if data.count(b"\n{") > 0 and not data.startswith(b"{\n") else None
    try:
        value = json.loads(data if place is None else lines[place])
    except ValueError:
        return data[: dice.randrange(len(data) + 1)]
    for _ in range(dice.randint(1, 3)):
        _change(value, dice)
    text = json.dumps(value).encode("utf-8", errors="surrogatepass")
    if place is None:
        return text
    lines[place] = text
    return b"\n".join(lines)


def _change(value: Any, dice: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys:
            return
        key = dice.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and dice.random() < 0.8:
            value = value[key]
            continue
        if dice.random() < 0.2:
            del value[key]
        else:
            value[key] = copy.deepcopy(dice.choice(VALUES))  # a later change must not reach the table
        return
