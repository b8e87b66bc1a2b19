"""Follows all branches of an unknown condition, and keeps the values on which they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.shell.scope import Scope
from planner.shell.values import unknown


class PathEnds(Exception):
    """`exit` or `return`: what follows on this path is not reached."""


def follow_branches(paths: Sequence[Callable[[Scope], object]], scope: Scope) -> None:
    """Follow every path on its own copy of the scope, then keep in `scope` the values on which all agree."""
    reached = []
    for path in paths:
        inner = scope.copy()
        try:
            path(inner)
        except PathEnds:
            continue
        reached.append(inner)
    if not reached:
        raise PathEnds
    names = dict.fromkeys(name for inner in reached for name in inner.variables)
    for name in names:
        values = [inner.variables.get(name) for inner in reached]
        agreed = values[0] if all(value == values[0] for value in values) else unknown(f"${name}")
        if agreed is not None:
            scope.variables[name] = agreed
    for inner in reached:
        scope.exported |= inner.exported
        scope.doubts |= inner.doubts


def skip_body(scope: Scope) -> None:
    """Follow the path on which nothing runs."""
