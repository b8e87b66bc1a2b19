"""YAML, TOML and JSON from untrusted files: bounded in depth, and in size once aliases are expanded.

Each reader returns a value or raises InputError, whatever exception the parser raised.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

from hwprobe.errors import InputError

# A Kubernetes manifest nests some fifteen deep and holds some hundred values.
DEEPEST = 60
MOST_NODES = 50_000
# What Python's and YAML's own parsers raise besides their named errors: numbers of 5,000 digits, odd tags and dates.
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def load_toml(data: bytes, where: str) -> dict[str, Any]:
    """Return a TOML document. Raises InputError naming `where` it stands."""
    try:
        text = data.decode()
        if max(piece.count(".") for piece in re.split(r"[,=\[\]{}\n]", text)) > DEEPEST:
            raise InputError(f"{where}: not valid TOML for sgtune: a key of more than {DEEPEST} parts")
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error.reason})") from error
    except ODD as error:
        raise InputError(f"{where}: not valid TOML ({said(error)})") from error
    bounded(document, where)
    return document


def load_json(text: str | bytes, where: str) -> Any:
    """Return a JSON value of any form; NaN and Infinity are read as SGLang's tools write them. Raises InputError."""
    try:
        value = json.loads(text)
    except ODD as error:
        raise InputError(f"{where}: not valid JSON ({said(error)})") from error
    bounded(value, where)
    return value


def load_yaml(text: str, where: str) -> list[Any]:
    """Return the documents of a YAML text. Raises InputError naming `where` it stands."""
    import yaml  # late: most launches come without YAML, and it takes its time

    check_yaml(text, where)
    try:
        return list(yaml.load_all(text, Loader=_loader(yaml)))  # a safe loader, by whichever parser
    except (yaml.YAMLError, *ODD) as error:
        raise InputError(f"'{where}' is not valid YAML: {said(error)}") from error


def check_yaml(text: str, where: str) -> None:
    """Raise InputError for a text that is not YAML, or larger than any of ours once every alias is in its place.

    The depth is counted before anything is built.
    """
    import yaml

    loader = _loader(yaml)
    try:
        _check_depth(yaml.parse(text, Loader=loader), where)
        budget = [MOST_NODES]
        for node in yaml.compose_all(text, Loader=loader):
            if node is not None:
                _spend(node, budget, where)
    except (yaml.YAMLError, *ODD) as error:
        raise InputError(f"'{where}' is not valid YAML: {said(error)}") from error


def _loader(yaml: Any) -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def bounded(value: Any, where: str) -> None:
    """Raise InputError for a value nested deeper than any of ours; walks without recursion."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if depth > DEEPEST:
            raise InputError(f"{where}: nested more than {DEEPEST} deep")
        waiting += [(child, depth + 1) for child in children if isinstance(child, dict | list)]


def finite(value: float, name: str, least: float, most: float) -> float:
    """Return a number within its bounds. Raises InputError naming it and the range."""
    if not (math.isfinite(value) and least <= value <= most):
        raise InputError(f"{name} is {value:g}; it must be from {least:g} to {most:g}")
    return value


def said(error: BaseException) -> str:
    """Return an error's first line, short enough for a sentence."""
    lines = str(error).splitlines()
    return (lines[0][:200] if lines else "") or type(error).__name__


def _check_depth(events: Any, where: str) -> None:
    depth = 0
    for count, event in enumerate(events):
        name = type(event).__name__
        depth += name.endswith("StartEvent") - name.endswith("EndEvent")
        if depth > DEEPEST:
            raise InputError(f"'{where}' is not valid YAML for sgtune: nested more than {DEEPEST} deep")
        if count > MOST_NODES:
            raise InputError(f"'{where}' is not valid YAML for sgtune: more than {MOST_NODES:,} values")


def _spend(node: Any, budget: list[int], where: str) -> None:
    """Count a node and all below it, aliases as often as they are used. Raises InputError beyond the budget."""
    sizes: dict[int, int] = {}

    def size(branch: Any, above: tuple[int, ...]) -> int:
        if id(branch) in above:
            raise InputError(f"'{where}' is not valid YAML for sgtune: an alias that holds itself")
        if id(branch) not in sizes:
            children = branch.value if isinstance(branch.value, list) else ()
            flat = [item for child in children for item in (child if isinstance(child, tuple) else (child,))]
            sizes[id(branch)] = 1 + sum(size(child, (*above, id(branch))) for child in flat)
        return sizes[id(branch)]

    budget[0] -= size(node, ())
    if budget[0] < 0:
        raise InputError(f"'{where}' is not valid YAML for sgtune: more than {MOST_NODES:,} values once aliases are in")
