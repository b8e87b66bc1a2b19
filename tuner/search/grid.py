"""Every configuration of a space, in an order drawn by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Grid:
    """Walks a space once. Optuna's own grid stops the study with its last point, which ask and tell cannot have."""

    def __init__(self, choices: Mapping[str, tuple[Any, ...]], seed: int) -> None:
        self._choices = dict(choices)
        self._shape = tuple(len(values) for values in choices.values())
        self._order = np.random.default_rng(seed).permutation(math.prod(self._shape))
        self._at = 0
        self._tried: set[tuple[Any, ...]] = set()

    def tried(self, params: Mapping[str, Any]) -> None:
        """Leave these parameters out from now on."""
        self._tried.add(tuple(params[name] for name in self._choices))

    def next(self) -> dict[str, Any] | None:
        """Return the next parameters that were not tried, None at the end."""
        while self._at < len(self._order):
            places = np.unravel_index(self._order[self._at], self._shape)
            values = tuple(options[int(place)] for options, place in zip(self._choices.values(), places, strict=True))
            if values not in self._tried:
                return dict(zip(self._choices, values, strict=True))
            self._at += 1
        return None
