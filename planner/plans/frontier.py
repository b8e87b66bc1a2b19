"""Pareto front: the configurations no other beats on both axes."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points not dominated when both coordinates are better larger, by first axis."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    best_second = float("-inf")
    for index in order:
        if points[index][1] > best_second:
            front.append(index)
            best_second = points[index][1]
    return front
