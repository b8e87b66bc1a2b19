"""What slices and full launches together say of every configuration: one regression over both.

As in the sampler, what is wrong with the closed form is a sum of normal effects: each figure of the machine through
the equations' slopes, each knob and pair of knobs, and whatever a configuration has of its own. A figure of the machine
is the same on a slice and on the whole. Of a knob's effect only a share carries over, and that share is learned from
the configurations that ran as both (by marginal likelihood, over a grid of shares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.layout import Array

# Shares of a knob's effect that may carry over from a slice to the whole, and what is believed of each beforehand.
CARRIES = np.array([0.0, 0.3, 0.6, 0.8, 0.9, 0.97])
BELIEVED = np.array([0.05, 0.10, 0.15, 0.25, 0.25, 0.20])
# One standard deviation (log) of a measurement, of what all rows share, of what all slices share beside it, and of
# what one configuration has of its own.
SCATTER = 0.02
COMMON = 0.05
SLICE_BIAS = 0.10
OWN = 0.03


@dataclass(frozen=True, slots=True)
class Rows:
    """Configurations of one fidelity: the closed form's log figure, its slopes, the knobs, and an id of each."""

    base: Array
    by: Array
    knobs: Array
    ids: Array
    sliced: bool

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True, slots=True)
class WholePosterior:
    """Posterior of the whole model's log figure: mean and deviation per row, the shift of the machine's parameters in
    sigmas, and the share of a slice's deviation that carries over."""

    mean: Array
    deviation: Array
    parameter_shift_sigmas: Array
    carry: float


def regress(seen: list[tuple[Rows, Array]], asked: Rows, parameter_shift_sigmas: Array) -> WholePosterior:
    """Return what observations (rows and their log figures) say of the asked rows of the whole model.

    `parameter_shift_sigmas` is where the slopes were taken, in standard deviations of each figure of the machine.
    """
    count = sum(len(rows) for rows, _ in seen)
    prior = asked.base - asked.by @ parameter_shift_sigmas
    spread = _diagonal(asked)
    if not count:
        return WholePosterior(prior, np.sqrt(spread), parameter_shift_sigmas, float(CARRIES @ BELIEVED))
    target = np.concatenate([values - rows.base + rows.by @ parameter_shift_sigmas for rows, values in seen])
    means, variances, moved, logs = [], [], [], []
    for carry in CARRIES:
        inner = np.block([[_kernel(a, b, carry) for b, _ in seen] for a, _ in seen]) + SCATTER**2 * np.eye(count)
        across = np.hstack([_kernel(asked, rows, carry) for rows, _ in seen])
        solved = np.linalg.solve(inner, np.column_stack([target, across.T]))
        alpha = solved[:, 0]
        fit = float(target @ alpha)
        # data that the prior calls impossible say that its spreads are too small, for every effect alike
        surprise = max(1.0, fit / count)
        means.append(prior + across @ alpha)
        variances.append(surprise * np.maximum(spread - np.sum(across * solved[:, 1:].T, axis=1), 1e-8))
        moved.append(np.concatenate([rows.by for rows, _ in seen]).T @ alpha)
        logs.append(-0.5 * (fit / surprise + np.linalg.slogdet(inner)[1] + count * math.log(surprise)))
    weight = BELIEVED * np.exp(np.array(logs) - max(logs))
    weight = weight / weight.sum()
    mean = weight @ np.array(means)
    variance = weight @ (np.array(variances) + np.square(np.array(means) - mean))
    return WholePosterior(mean, np.sqrt(variance), weight @ np.array(moved), float(weight @ CARRIES))


def _kernel(a: Rows, b: Rows, carry: float) -> Array:
    """Covariance of the effects on two sets of rows."""
    shared = carry if a.sliced != b.sliced else 1.0
    same = (a.ids[:, None] == b.ids[None, :]) * OWN**2
    common = COMMON**2 + (SLICE_BIAS**2 if a.sliced and b.sliced else 0.0)
    found: Array = a.by @ b.by.T + shared * (a.knobs @ b.knobs.T + same) + common
    return found


def _diagonal(rows: Rows) -> Array:
    found: Array = np.sum(rows.by**2, axis=1) + np.sum(rows.knobs**2, axis=1) + OWN**2 + COMMON**2
    return found
