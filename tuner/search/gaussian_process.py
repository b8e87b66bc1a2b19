"""Predicts rows that were not launched from those that were.

A regression of log(measured / predicted) on the physics' slopes and the knobs. The prior is a sum of normal effects
(docs/decisions/0006-a-sum-of-effects.md): a Gaussian process with a linear kernel, which scikit-learn fits. The size of
the effects is unknown beforehand, so several sizes are weighted at once by how well they fit the data.

Slices of the model may have been launched too. A figure of the machine is the same on a slice and on the whole; of a
knob's effect only a share carries over; several values of that share are weighted too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

from models.layout import Array
from tuner.search.closed_form import Figure
from tuner.search.configurations import PHYSICS, UNSCALED, Candidates, knob_features, slopes

# A measurement's scatter, and the closed form's error against the replay.
SCATTER = 0.02
# Sizes weighted: factors on the spread of the machine's figures, and on that of the knobs.
SIZES = tuple((figures, knobs) for figures in (1.0, 2.0) for knobs in (0.5, 1.0, 2.0, 4.0))
# Shares of a knob's effect that may carry over from slices to the whole, with their prior weights.
CARRIES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)
CARRIES_BELIEVED = (0.05, 0.10, 0.15, 0.25, 0.25, 0.20)
# One standard deviation (log) of an effect common to all slices, and of one particular to a sliced configuration.
SLICE_BIAS = 0.10
OWN = 0.03
# One standard deviation (log) of what a node of a cluster does to a launch.
NODE = 0.10
# Rounds of evaluating the equations anew where the data moved the machine's figures (Gauss-Newton), and how many
# standard deviations they may move.
ROUNDS = 2
FARTHEST = 3.0
LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and standard deviation of the logarithm of a figure (sizes x rows), and the weight of every size.

    `carry` is the share of a knob's effect on slices that is expected on the whole model.
    """

    mean: Array
    deviation: Array
    weight: Array
    carry: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Rows that were launched, of the whole model or of slices, and the logarithm of the figure measured on each.

    `nodes` are the nodes of a cluster that each ran on; none where they ran on this machine.
    """

    rows: Candidates
    log_measured: Array
    sliced: bool = False
    nodes: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class _Size:
    """Factors on the spread of the machine's figures and of the knobs, the share that carries over, and its prior."""

    figures: float
    knobs: float
    carry: float = 1.0
    believed: float = 1.0


def learn(
    train: Sequence[TrainingSet], query: Candidates, figure: Figure, common: float, against: int | None = None
) -> Posterior:
    """Predict the rows of a query, which are of the whole model, from launched rows.

    `common` is the spread of an effect common to all rows. With `against`, the answer is every row's figure less that
    of the launched row in this place: their common effects, the measurement's luck included, then cancel.
    """
    X_train, y_train = [part.rows for part in train], np.concatenate([np.zeros(0), *(p.log_measured for p in train)])
    count = len(y_train)
    inputs = _Inputs.of_rows(train, query, common)
    sizes = inputs.sizes
    parameter_shift_sigmas = np.zeros(len(PHYSICS))
    y_model, by = _slopes(X_train, parameter_shift_sigmas, figure)
    for _ in range(ROUNDS if count else 0):
        fits, weight = _fits(inputs, by, y_train - y_model + by @ parameter_shift_sigmas)
        moved = [at.figures * (gp.X_train_.T @ gp.alpha_)[: len(PHYSICS)] for gp, at in zip(fits, sizes, strict=True)]
        parameter_shift_sigmas = np.clip(weight @ np.array(moved), -FARTHEST, FARTHEST)
        y_model, by = _slopes(X_train, parameter_shift_sigmas, figure)
    fits, weight = _fits(inputs, by, y_train - y_model + by @ parameter_shift_sigmas)
    base, slope = slopes(query, parameter_shift_sigmas, figure)
    base = base - slope @ parameter_shift_sigmas
    rows = [inputs.columns(slope, slice(count, None), size) for size in sizes]
    if against is not None:
        base = base - (y_model - by @ parameter_shift_sigmas)[against]
        rows = [x - gp.X_train_[against] for x, gp in zip(rows, fits, strict=True)]
    predictions = [gp.predict(x, return_std=True) for x, gp in zip(rows, fits, strict=True)]
    deviation = np.maximum(np.array([spread for _, spread in predictions]), LEAST_DEVIATION)
    carry = float(weight @ np.array([size.carry for size in sizes]))
    return Posterior(base + np.array([mean for mean, _ in predictions]), deviation, weight, carry)


def _slopes(rows: Sequence[Candidates], parameter_shift_sigmas: Array, figure: Figure) -> tuple[Array, Array]:
    """Return the figure of all these rows, and its slopes, one set after the other."""
    parts = [slopes(part, parameter_shift_sigmas, figure) for part in rows if part.configs]
    if not parts:
        return np.zeros(0), np.zeros((0, len(PHYSICS)))
    return np.concatenate([values for values, _ in parts]), np.concatenate([by for _, by in parts])


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The regression's inputs, one column per effect: the effects beyond the slopes, training first, then query."""

    knobs: Array
    unscaled: Array
    own: Array
    sliced: Array
    nodes: Array
    common: float

    @classmethod
    def of_rows(cls, train: Sequence[TrainingSet], query: Candidates, common: float) -> _Inputs:
        parts = [*(part.rows for part in train), query]
        names, knobs = knob_features(parts)
        counted = [(len(part.rows.configs), part.sliced) for part in train] + [(len(query.configs), False)]
        sliced = np.concatenate([np.full(count, on_slice) for count, on_slice in counted])
        tried = list(dict.fromkeys(config for part in train if part.sliced for config in part.rows.configs))
        configs = [config for part in parts for config in part.configs]
        own = np.array([[config == other for other in tried] for config in configs]).reshape(len(configs), len(tried))
        unscaled = np.array([name.split()[0] in UNSCALED for name in names], dtype=bool)
        return cls(knobs, unscaled, OWN * own, sliced, NODE * _node_shares(train, len(query.configs)), common)

    def on_any_node(self, row: Array) -> Array:
        """Return a row of inputs without what its nodes did to it: their columns are the last."""
        return np.append(row[: len(row) - self.nodes.shape[1]], np.zeros(self.nodes.shape[1]))

    @property
    def sizes(self) -> list[_Size]:
        """The hypotheses weighted: every size, and with slices every share that may carry over."""
        carries = zip(CARRIES, CARRIES_BELIEVED, strict=True) if self.sliced.any() else [(1.0, 1.0)]
        return [_Size(*size, *carry) for size, carry in itertools.product(SIZES, carries)]

    def columns(self, slope: Array, rows: slice, size: _Size) -> Array:
        """Return the inputs of some rows, whose slopes these are."""
        shared = np.full((len(slope), 1), self.common)
        effects = np.hstack([self.knobs[rows] * np.where(self.unscaled, 1.0, size.knobs), self.own[rows]])
        if not self.sliced.any():
            return np.hstack([slope * size.figures, effects, shared, self.nodes[rows]])
        on_slice = self.sliced[rows].reshape(-1, 1)
        apart = np.sqrt(1.0 - size.carry) * effects
        parts = [np.sqrt(size.carry) * effects, np.where(on_slice, apart, 0.0), np.where(on_slice, 0.0, apart)]
        return np.hstack([slope * size.figures, *parts, shared, SLICE_BIAS * on_slice, self.nodes[rows]])


def _node_shares(train: Sequence[TrainingSet], queried: int) -> Array:
    """Return the share of every node (columns) in every row; those of the query run on no node in particular."""
    ran = [nodes for part in train for nodes in (part.nodes or ((),) * len(part.rows.configs))] + [()] * queried
    names = sorted({name for nodes in ran for name in nodes})
    return np.array([[nodes.count(name) / len(nodes) if nodes else 0.0 for name in names] for nodes in ran]).reshape(
        len(ran), len(names)
    )


def _fits(inputs: _Inputs, slope: Array, y_train: Array) -> tuple[list[GaussianProcessRegressor], Array]:
    """Return a regression for every size, and how likely the data make each size."""
    sizes = inputs.sizes
    prior = np.array([size.believed for size in sizes])
    fits = [GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=SCATTER**2, optimizer=None) for _ in sizes]
    if not len(y_train):
        return fits, prior / prior.sum()
    for gp, size in zip(fits, sizes, strict=True):
        gp.fit(inputs.columns(slope, slice(0, len(y_train)), size), y_train)
    likely = np.array([gp.log_marginal_likelihood_value_ for gp in fits])
    weight = prior * np.exp(likely - likely.max())
    return fits, weight / weight.sum()
