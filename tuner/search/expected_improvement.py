"""Expected improvement of a launch, elementwise over arrays of any shape."""

from __future__ import annotations

import math

import numpy as np

from models.layout import Array

LEAST = 1e-300


def expected_improvement(ahead: Array, deviation: Array) -> Array:
    """Return E[max(0, x)] of a normal x: by how much a row that is expected `ahead` of the best improves on it."""
    z = ahead / deviation
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (density + z * chance_below(z)), LEAST)


def nothing_to_beat(mean: Array) -> Array:
    """Return the rows' expected improvement over the best expected one, before any measurement; `mean` in log units."""
    return np.exp(mean - float(mean.max()))


def chance_below(z: Array) -> Array:
    """Return the chance that a standard normal variable stays below z."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in np.ravel(z)]).reshape(np.shape(z))
