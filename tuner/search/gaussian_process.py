"""What launches say of rows that were not launched.

A regression of log(measured / predicted) on the physics' slopes and the knobs. The prior is a sum of normal effects
(docs/decisions/0006-a-sum-of-effects.md): a Gaussian process with a linear kernel, which scikit-learn fits. How large
the effects are is not known beforehand, so several sizes are believed in at once, each as much as the data allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

from models.layout import Array
from tuner.search.closed_form import Figure
from tuner.search.configurations import PHYSICS, UNSCALED, Candidates, knob_features, slopes

# A measurement's scatter, and what the closed form leaves against the replay.
SCATTER = 0.02
# Sizes believed in: factors on the spread of the machine's figures, and on that of the knobs.
SIZES = tuple((figures, knobs) for figures in (1.0, 2.0) for knobs in (0.5, 1.0, 2.0, 4.0))
# Rounds of evaluating the equations anew where the data moved the machine's figures (Gauss-Newton), and how many
# standard deviations they may move.
ROUNDS = 2
FARTHEST = 3.0
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and standard deviation of the logarithm of a figure (sizes x rows), and the weight of every size."""

    mean: Array
    deviation: Array
    weight: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Rows that were launched, and the logarithm of what was measured of each."""

    rows: Candidates
    log_measured: Array


def learn(
    train: TrainingSet, query: Candidates, figure: Figure, common: float, against: int | None = None
) -> Posterior:
    """Return what launched rows say of the rows of a query.

    `common` is the spread of what all rows share. With `against`, the answer is every row's figure less that of the
    launched row in this place: what both have in common, the measurement's luck included, then cancels.
    """
    X_train, y_train, X_query = train.rows, train.log_measured, query
    names, features = knob_features((X_train, X_query))
    inputs = _Inputs(np.array([name.split()[0] in UNSCALED for name in names], dtype=bool), common)
    count = len(y_train)
    parameter_shift_sigmas = np.zeros(len(PHYSICS))
    for _ in range(ROUNDS if count else 0):
        here, by = slopes(X_train, parameter_shift_sigmas, figure)
        fits, weight = _fits(inputs, by, features[:count], y_train - here + by @ parameter_shift_sigmas)
        moved = [size[0] * (gp.X_train_.T @ gp.alpha_)[: len(PHYSICS)] for gp, size in zip(fits, SIZES, strict=True)]
        parameter_shift_sigmas = np.clip(weight @ np.array(moved), -FARTHEST, FARTHEST)
    here, by = slopes(X_train, parameter_shift_sigmas, figure) if count else (np.zeros(0), np.zeros((0, len(PHYSICS))))
    fits, weight = _fits(inputs, by, features[:count], y_train - here + by @ parameter_shift_sigmas)
    base, slope = slopes(X_query, parameter_shift_sigmas, figure)
    base = base - slope @ parameter_shift_sigmas
    rows = [inputs.of(slope, features[count:], size) for size in SIZES]
    if against is not None:
        base = base - (here - by @ parameter_shift_sigmas)[against]
        rows = [x - gp.X_train_[against] for x, gp in zip(rows, fits, strict=True)]
    found = [gp.predict(x, return_std=True) for x, gp in zip(rows, fits, strict=True)]
    deviation = np.maximum(np.array([spread for _, spread in found]), LEAST_DEVIATION)
    return Posterior(base + np.array([mean for mean, _ in found]), deviation, weight)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Builds the regression's inputs, one column per effect; the last is what all rows share."""

    unscaled: Array
    common: float

    def of(self, slope: Array, features: Array, size: tuple[float, float]) -> Array:
        shared = np.full((len(slope), 1), self.common)
        return np.hstack([slope * size[0], features * np.where(self.unscaled, 1.0, size[1]), shared])


def _fits(
    inputs: _Inputs, slope: Array, features: Array, y_train: Array
) -> tuple[list[GaussianProcessRegressor], Array]:
    """Return a regression for every size, and how likely the data make each size."""
    fits = [GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=SCATTER**2, optimizer=None) for _ in SIZES]
    if not len(y_train):
        return fits, np.full(len(SIZES), 1.0 / len(SIZES))
    for gp, size in zip(fits, SIZES, strict=True):
        gp.fit(inputs.of(slope, features, size), y_train)
    likely = np.array([gp.log_marginal_likelihood_value_ for gp in fits])
    weight = np.exp(likely - likely.max())
    return fits, weight / weight.sum()
